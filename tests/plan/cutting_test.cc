#include "server/plan/cutting.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <set>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "server/plan/cost.h"
#include "server/plan/memory.h"
#include "server/plan/plan.h"
#include "server/plan/position_index.h"
#include "server/plan/workload.h"
#include "tests/plan/golden_mask.h"

namespace ringserve::test {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// A spec with a mask for each list of documents, and its bands as the mask compiler would make
// them.
struct Packed {
  v1::AttentionSpec spec;
  std::vector<std::vector<Band>> bands;

  Packed(const std::vector<std::vector<int64_t>>& rows, int64_t length, bool causal = true) {
    spec.set_batch(static_cast<int64_t>(rows.size()));
    spec.set_q_heads(1);
    spec.set_kv_heads(1);
    spec.set_q_len(length);
    spec.set_kv_len(length);
    spec.set_head_dim(64);
    spec.set_value_dim(64);
    spec.set_dtype(v1::DTYPE_F32);
    for (const std::vector<int64_t>& documents : rows) {
      v1::Mask& mask = *spec.add_masks();
      mask.set_causal(causal);
      for (const int64_t document : documents) mask.mutable_documents()->add_q_lengths(document);
      bands.push_back(DocumentBands(documents, causal));
    }
    if (std::equal(bands.begin() + 1, bands.end(), bands.begin())) bands.resize(1);
  }
};

Cost CostOf(const Packed& packed, const v1::AttentionOptions& options, Way way, int ranks,
            v1::RotateMethod rotate) {
  Cutter cutter(packed.spec, options, packed.bands);
  const Cutting cutting = cutter.Cut(way, ranks);
  const Workload workload =
      MakeWorkload(cutting.q, cutting.kv, packed.bands, packed.spec.batch(), PaceOf(options));
  const Speed speed = SpeedOf(DefaultMeasurements(), packed.spec);
  return Estimate(workload, ComputeOf(workload, speed),
                  {.kv = KvShardBytes(packed.spec, cutting.kv)}, rotate, speed);
}

// 4,096 positions: 30 short documents, 2 of medium length, a long one.
std::vector<int64_t> SkewedDocuments() {
  std::vector<int64_t> documents;
  for (int i = 0; i < 30; ++i) documents.push_back(24 + i % 5 * 4);  // 960 in all
  documents.insert(documents.begin() + 7, 512);
  documents.insert(documents.begin() + 20, 480);
  documents.insert(documents.begin() + 15, 4'096 - 960 - 512 - 480);
  return documents;
}

std::vector<int64_t> RowsByRank(const SequenceLayout& layout, int64_t batch_row = 0) {
  std::vector<int64_t> rows;
  for (int rank = 0; rank < layout.ranks(); ++rank) rows.push_back(layout.RowsOf(rank, batch_row));
  return rows;
}

TEST(Cutting, LeavesDivisibleCausalInputWithoutImbalance) {
  for (const v1::RotateMethod rotate :
       {v1::ROTATE_METHOD_ALL_TO_ALL, v1::ROTATE_METHOD_ALL_GATHER}) {
    for (int ranks = 1; ranks <= 8; ++ranks) {
      const int64_t unit = 2 * ranks;
      const Packed one({{64 * unit}}, 64 * unit);
      EXPECT_EQ(CostOf(one, {}, Way::kHeadTail, ranks, rotate).imbalance, 1) << ranks;
      EXPECT_EQ(CostOf(one, {}, Way::kPerDocument, ranks, rotate).imbalance, 1) << ranks;
      const Packed many({{3 * unit, unit, 40 * unit, 20 * unit}, {64 * unit}}, 64 * unit);
      EXPECT_EQ(CostOf(many, {}, Way::kPerDocument, ranks, rotate).imbalance, 1) << ranks;
    }
  }
}

TEST(Cutting, BalancesASkewedMixture) {
  const std::vector<int64_t> documents = SkewedDocuments();
  ASSERT_EQ(documents.size(), 33u);
  ASSERT_EQ(std::accumulate(documents.begin(), documents.end(), int64_t{0}), 4'096);
  const Packed packed({documents}, 4'096);
  for (int ranks = 2; ranks <= 8; ++ranks) {
    const Cost ptrr = CostOf(packed, {}, Way::kPtrr, ranks, v1::ROTATE_METHOD_ALL_GATHER);
    EXPECT_LE(ptrr.imbalance, 1.05) << ranks;
    const Cost ring = CostOf(packed, {}, Way::kPerDocument, ranks, v1::ROTATE_METHOD_ALL_TO_ALL);
    EXPECT_LE(ring.imbalance, 1.05) << ranks;
    EXPECT_GT(CostOf(packed, {}, Way::kContiguous, ranks, v1::ROTATE_METHOD_ALL_GATHER).imbalance,
              1.3);
  }
}

TEST(Cutting, LeavesShortDocumentsWholeAndCutsTheRestLikePerDocument) {
  const std::vector<int64_t> documents = SkewedDocuments();
  const Packed packed({documents}, 4'096);
  const v1::AttentionOptions options;
  Cutter cutter(packed.spec, options, packed.bands);
  for (int ranks = 2; ranks <= 8; ++ranks) {
    const Cutting cutting = cutter.Cut(Way::kWholeDocuments, ranks);
    const PositionIndex index(cutting.q.rows[0]);
    int64_t begin = 0;
    for (const int64_t length : documents) {
      std::set<int> holders;
      for (const Placed& placed : index.Overlapping(begin, begin + length))
        holders.insert(placed.rank);
      EXPECT_EQ(holders.size(), length < 100 ? 1u : static_cast<size_t>(ranks)) << length;
      begin += length;
    }
    const Cost cost =
        CostOf(packed, options, Way::kWholeDocuments, ranks, v1::ROTATE_METHOD_ALL_TO_ALL);
    EXPECT_LE(cost.imbalance, 1.03) << ranks;
    EXPECT_LT(
        cost.tiles,
        CostOf(packed, options, Way::kPerDocument, ranks, v1::ROTATE_METHOD_ALL_TO_ALL).tiles);
  }
}

TEST(Cutting, BalancesTheTotalsOfAnyMaskByPtrr) {
  constexpr int64_t kLength = 8'192;
  const int64_t open = Band::kUnboundedLo;
  const std::vector<std::vector<Band>> masks = {
      {{0, kLength, 0, kLength}},
      {{0, kLength, 0, kLength, open, 0}},
      {{0, kLength, 0, kLength, -1'024, 0}},
      {{0, kLength, 0, 2'000}, {0, kLength, 2'000, kLength, open, 0}},
      {{0, 3'000, 0, kLength}, {4'000, kLength, 4'000, kLength, -512, 512}},
  };
  for (const std::vector<Band>& mask : masks) {
    Packed packed({{}}, kLength);
    packed.bands.clear();
    packed.bands.emplace_back();
    for (const Band& band : mask) packed.bands[0].push_back(Normalized(band));
    for (int ranks = 2; ranks <= 8; ++ranks) {
      const Cost cost = CostOf(packed, {}, Way::kPtrr, ranks, v1::ROTATE_METHOD_ALL_GATHER);
      EXPECT_LE(cost.imbalance, 1.05) << ranks << " " << ToString(mask[0]);
    }
  }
}

TEST(Cutting, ShiftsEveryBalancersWorkByWeight) {
  const Packed packed({{3'000, 500, 2'500}}, 6'000);
  v1::AttentionOptions options;
  for (const double weight : {1.0, 2.0, 3.0}) options.add_worker_weights(weight);
  EXPECT_THAT(PaceOf(options), ElementsAre(2.0, 1.0, ::testing::DoubleEq(2.0 / 3)));
  Packed full({{}}, 6'000);
  full.bands = {{{0, 6'000, 0, 6'000}}};
  for (const Way way : {Way::kContiguous, Way::kHeadTail, Way::kPerDocument, Way::kPtrr}) {
    Cutter cutter(full.spec, options, full.bands);
    const Cutting cutting = cutter.Cut(way, 3);
    const std::vector<int64_t> rows = RowsByRank(cutting.q);
    for (int rank = 0; rank < 3; ++rank) EXPECT_NEAR(rows[rank], 1'000 * (rank + 1), 64);
    EXPECT_NEAR(CostOf(full, options, way, 3, v1::ROTATE_METHOD_ALL_TO_ALL).imbalance, 1, 0.07);
  }
  for (const Way way : {Way::kPerDocument, Way::kPtrr}) {
    EXPECT_NEAR(CostOf(packed, options, way, 3, v1::ROTATE_METHOD_ALL_GATHER).imbalance, 1, 0.03);
  }
}

TEST(Cutting, TakesEqualWeightsForNone) {
  const Packed packed({{700, 300}}, 1'003);
  v1::AttentionOptions options;
  for (int rank = 0; rank < 3; ++rank) options.add_worker_weights(0.7);
  EXPECT_TRUE(PaceOf(options).empty());
  const v1::AttentionOptions none;
  Cutter with(packed.spec, options, packed.bands), without(packed.spec, none, packed.bands);
  for (const Way way : {Way::kContiguous, Way::kHeadTail, Way::kPerDocument, Way::kPtrr}) {
    EXPECT_EQ(with.Cut(way, 3).q, without.Cut(way, 3).q);
    EXPECT_EQ(with.Cut(way, 3).kv, without.Cut(way, 3).kv);
  }
}

TEST(Cutting, CutsQueriesAndKeysOfDocumentsByTheirOwnLengths) {
  Packed packed({{8, 4}}, 12);
  packed.spec.set_kv_len(20);
  v1::Documents& documents = *packed.spec.mutable_masks(0)->mutable_documents();
  documents.add_kv_lengths(4);
  documents.add_kv_lengths(16);
  const v1::AttentionOptions options;
  Cutter cutter(packed.spec, options, packed.bands);
  const Cutting cutting = cutter.Cut(Way::kPerDocument, 2);
  EXPECT_EQ(cutting.q.rows[0], PerDocumentRow(std::vector<int64_t>{8, 4}, 12, 2));
  EXPECT_EQ(cutting.kv.rows[0], PerDocumentRow(std::vector<int64_t>{4, 16}, 20, 2));
  EXPECT_EQ(cutter.Cut(Way::kPtrr, 2).kv, HeadTailLayout(20, 2));
  documents.clear_kv_lengths();
  EXPECT_EQ(cutter.Cut(Way::kPerDocument, 2).kv.rows[0],
            PerDocumentRow(std::vector<int64_t>{8, 4}, 20, 2));
}

TEST(Cutting, GivesBatchRowsThatDifferLayoutsOfTheirOwn) {
  const Packed differing({{8, 24}, {16, 16}}, 32);
  const Packed alike({{8, 24}, {8, 24}}, 32);
  const v1::AttentionOptions options;
  Cutter two(differing.spec, options, differing.bands), one(alike.spec, options, alike.bands);
  for (const Way way : {Way::kPerDocument, Way::kPtrr}) {
    EXPECT_EQ(two.Cut(way, 2).q.rows.size(), 2u);
    EXPECT_TRUE(one.Cut(way, 2).q.shared());
  }
}

TEST(Cutting, RefusesALayoutThatIsTooLargeBeforeItIsMade) {
  Packed packed({{}}, std::numeric_limits<int32_t>::max());
  v1::AttentionOptions options;
  options.set_ptrr_block(256);
  Cutter cutter(packed.spec, options, packed.bands);
  const absl::Status refused = cutter.Check(Way::kPtrr, 4);
  EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(refused.message()),
              ::testing::AllOf(HasSubstr("options.ptrr_block is 256"), HasSubstr("limit 4194304")));
  options.set_ptrr_block(0);
  EXPECT_TRUE(cutter.Check(Way::kPtrr, 4).ok());
  const Packed many({std::vector<int64_t>(3'000, 2'048)}, 3'000 * 2'048);
  Cutter documents(many.spec, options, many.bands);
  EXPECT_TRUE(documents.Check(Way::kPerDocument, 512).ok());
  EXPECT_EQ(documents.Check(Way::kPerDocument, 1'024).code(),
            absl::StatusCode::kFailedPrecondition);
}

TEST(Cutting, CutsVeryManyShortDocumentsCoarser) {
  constexpr int kRanks = 1'024;
  const Packed packed({std::vector<int64_t>(1'000, 1'000)}, 1'000'000);
  const v1::AttentionOptions options;
  Cutter cutter(packed.spec, options, packed.bands);
  const Cutting cutting = cutter.Cut(Way::kPerDocument, kRanks);
  EXPECT_EQ(cutting.kv, cutting.q);
  const Workload workload = MakeWorkload(cutting.q, cutting.kv, packed.bands, 1);
  EXPECT_LE(workload.piece_pairs, kMostPiecePairs);
  EXPECT_FALSE(workload.lockstep_is_bound);
  const std::vector<int64_t> rows = RowsByRank(cutting.q);
  EXPECT_LE(
      *std::max_element(rows.begin(), rows.end()) - *std::min_element(rows.begin(), rows.end()),
      32);
  const std::vector<uint64_t>& work = workload.work;
  EXPECT_LE(*std::max_element(work.begin(), work.end()),
            1.1 * std::accumulate(work.begin(), work.end(), uint64_t{0}) / kRanks);
}

// Few blocks and few bands can still be very many pieces of bands: what is looked at is bounded,
// not only what comes out.
TEST(Cutting, RefusesBandsThatBlocksCutIntoTooManyPieces) {
  Packed packed({{1 << 16}}, 1 << 16, /*causal=*/false);
  packed.bands = {{}};
  for (int64_t k = 0; k < 1 << 16; k += 2)
    packed.bands[0].push_back({.q_begin = 0, .q_end = 1 << 16, .k_begin = k, .k_end = k + 1});
  v1::AttentionOptions options;
  options.set_ptrr_block(1);
  const absl::Status refused = Cutter(packed.spec, options, packed.bands).Check(Way::kPtrr, 2);
  EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(refused.message()),
              ::testing::AllOf(HasSubstr("options.ptrr_block is 1"),
                               HasSubstr("into 2147483648 pieces"), HasSubstr("limit 4194304")));
  options.set_ptrr_block(1 << 10);
  EXPECT_TRUE(Cutter(packed.spec, options, packed.bands).Check(Way::kPtrr, 2).ok());
}

}  // namespace
}  // namespace ringserve::test
