#include "server/plan/layout.h"

#include <algorithm>
#include <numeric>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "server/plan/mask.h"
#include "server/plan/workload.h"
#include "tests/plan/golden_mask.h"
#include "tests/support/random.h"
#include "tests/support/safetensors.h"

namespace ringserve::test {
namespace {

using ::testing::ElementsAre;

std::vector<int64_t> Sizes(const SequenceLayout& layout) {
  std::vector<int64_t> sizes;
  for (int rank = 0; rank < layout.ranks(); ++rank) sizes.push_back(layout.RowsOf(rank, 0));
  return sizes;
}

std::vector<uint64_t> CausalWork(const SequenceLayout& layout, int64_t length) {
  v1::AttentionSpec spec;
  spec.set_batch(1);
  spec.set_q_len(length);
  spec.set_kv_len(length);
  spec.add_masks()->set_causal(true);
  return MakeWorkload(layout, layout, *CompileMasks(spec), 1).work;
}

TEST(Layout, HeadTailIsPyTorchs) {
  const nlohmann::json golden = ReadGoldenJson("golden/balancers.json");
  int cases = 0;
  for (const nlohmann::json& c : golden.at("head_tail")) {
    const int64_t length = c.at("balancer").at("seq_length");
    const int ranks = c.at("world_size");
    SCOPED_TRACE(c.at("balancer").dump() + " over " + std::to_string(ranks));
    const SequenceLayout layout = HeadTailLayout(length, ranks);
    EXPECT_EQ(Permutation(layout.rows[0]), c.at("indices")[0].get<std::vector<int64_t>>());
    EXPECT_EQ(InversePermutation(layout.rows[0]), c.at("restore")[0].get<std::vector<int64_t>>());
    EXPECT_EQ(CausalWork(layout, length), c.at("rank_work")[0].get<std::vector<uint64_t>>());
    EXPECT_EQ(CausalWork(ContiguousLayout(length, ranks), length),
              c.at("rank_work_contiguous")[0].get<std::vector<uint64_t>>());
    ++cases;
  }
  EXPECT_GE(cases, 25);
}

TEST(Layout, PerDocumentIsPyTorchs) {
  const nlohmann::json golden = ReadGoldenJson("golden/balancers.json");
  int cases = 0;
  for (const nlohmann::json& c : golden.at("per_document")) {
    const int ranks = c.at("world_size");
    SCOPED_TRACE(c.at("balancer").dump() + " over " + std::to_string(ranks));
    for (size_t b = 0; b < c.at("indices").size(); ++b) {
      const auto documents = c.at("balancer").at("docs")[b].get<std::vector<int64_t>>();
      const auto indices = c.at("indices")[b].get<std::vector<int64_t>>();
      const int64_t length = static_cast<int64_t>(indices.size());
      const SequenceLayout layout{{PerDocumentRow(documents, length, ranks)}};
      EXPECT_EQ(Permutation(layout.rows[0]), indices);
      EXPECT_EQ(InversePermutation(layout.rows[0]), c.at("restore")[b].get<std::vector<int64_t>>());
      const std::vector<Band> bands = DocumentBands(documents, /*causal=*/true);
      const auto work = [&](const SequenceLayout& of) {
        return MakeWorkload(of, of, {bands}, 1).work;
      };
      EXPECT_EQ(work(layout), c.at("rank_work")[b].get<std::vector<uint64_t>>());
      EXPECT_EQ(work(ContiguousLayout(length, ranks)),
                c.at("rank_work_contiguous")[b].get<std::vector<uint64_t>>());
      ++cases;
    }
  }
  EXPECT_GE(cases, 28);
}

TEST(Layout, ContiguousIsTorchChunks) {
  EXPECT_THAT(Sizes(ContiguousLayout(17, 4)), ElementsAre(5, 5, 5, 2));
  EXPECT_THAT(Sizes(ContiguousLayout(5, 4)), ElementsAre(2, 2, 1, 0));
  EXPECT_THAT(Sizes(ContiguousLayout(1, 3)), ElementsAre(1, 0, 0));
  EXPECT_THAT(Sizes(EvenLayout(17, 4)), ElementsAre(5, 4, 4, 4));
}

// Every position once, segments never empty and never to be joined.
void ExpectWhole(const SequenceLayout& layout, int64_t length) {
  ASSERT_EQ(layout.rows.size(), 1u);
  std::vector<int64_t> positions = Permutation(layout.rows[0]);
  std::sort(positions.begin(), positions.end());
  std::vector<int64_t> all(length);
  std::iota(all.begin(), all.end(), 0);
  EXPECT_EQ(positions, all);
  for (const std::vector<Segment>& segments : layout.rows[0]) {
    for (size_t i = 0; i < segments.size(); ++i) {
      EXPECT_GT(segments[i].size(), 0);
      if (i > 0) {
        EXPECT_NE(segments[i - 1].end, segments[i].begin);
      }
    }
  }
}

TEST(Layout, HoldsEveryPositionOnce) {
  Random random(1);
  for (int i = 0; i < 2'000; ++i) {
    const int ranks = static_cast<int>(random.Between(1, 8));
    const int64_t length = random.Between(1, random.Chance(0.5) ? 20 : 300);
    SCOPED_TRACE(std::to_string(length) + " over " + std::to_string(ranks));
    ExpectWhole(ContiguousLayout(length, ranks), length);
    ExpectWhole(EvenLayout(length, ranks), length);
    ExpectWhole(HeadTailLayout(length, ranks), length);
  }
}

TEST(Layout, HasPiecesAndTotalsThatDifferByAtMostOne) {
  for (int ranks = 1; ranks <= 8; ++ranks) {
    for (int64_t length = 1; length <= 200; ++length) {
      SCOPED_TRACE(std::to_string(length) + " over " + std::to_string(ranks));
      const std::vector<int64_t> even = Sizes(EvenLayout(length, ranks));
      const auto [even_least, even_most] = std::minmax_element(even.begin(), even.end());
      EXPECT_LE(*even_most - *even_least, 1);
      const SequenceLayout head_tail = HeadTailLayout(length, ranks);
      const std::vector<int64_t> totals = Sizes(head_tail);
      const auto [least, most] = std::minmax_element(totals.begin(), totals.end());
      EXPECT_LE(*most - *least, 1);
      if (length < 2 * ranks) continue;  // where some pieces are empty
      for (int rank = 0; rank < ranks; ++rank) {
        const std::vector<Segment>& segments = head_tail.rows[0][rank];
        if (rank == ranks - 1) {  // its two pieces are neighbours
          ASSERT_EQ(segments.size(), 1u);
          EXPECT_LE(segments[0].size() - length / (2 * ranks) * 2, 2);
          continue;
        }
        ASSERT_EQ(segments.size(), 2u);
        for (const Segment& segment : segments) {
          EXPECT_GE(segment.size(), length / (2 * ranks));
          EXPECT_LE(segment.size(), length / (2 * ranks) + 1);
        }
      }
    }
  }
}

// Of each document: its positions by piece, from the segments of all ranks.
void ExpectEvenPieces(const RowLayout& row, int64_t begin, int64_t length) {
  const int64_t pieces = 2 * static_cast<int64_t>(row.size());
  for (const std::vector<Segment>& segments : row) {
    int64_t held = 0;
    for (const Segment& segment : segments) {
      held += std::max<int64_t>(
          0, std::min(segment.end, begin + length) - std::max(segment.begin, begin));
    }
    EXPECT_GE(held, 2 * (length / pieces));
    EXPECT_LE(held, 2 * (length / pieces) + std::min<int64_t>(2, length % pieces));
  }
}

void ExpectEvenTotals(const RowLayout& row) {
  const std::vector<int64_t> totals = Sizes({{row}});
  const auto [least, most] = std::minmax_element(totals.begin(), totals.end());
  EXPECT_LE(*most - *least, 1);
}

TEST(Layout, PerDocumentHasPiecesAndTotalsThatDifferByAtMostOne) {
  Random random(3);
  for (int i = 0; i < 1'000; ++i) {
    const int ranks = static_cast<int>(random.Between(1, 8));
    std::vector<int64_t> documents(random.Between(0, 40));
    for (int64_t& document : documents)
      document = random.Chance(0.7) ? random.Between(0, 8) : random.Between(1, 100);
    const int64_t sum = std::accumulate(documents.begin(), documents.end(), int64_t{0});
    const int64_t length = std::max<int64_t>(1, sum + random.Pick({0, 0, 1, 5, 50}));
    SCOPED_TRACE("case " + std::to_string(i));
    const RowLayout row = PerDocumentRow(documents, length, ranks);
    ExpectWhole({{row}}, length);
    ExpectEvenTotals(row);
    int64_t begin = 0;
    for (const int64_t document : documents) {
      ExpectEvenPieces(row, begin, document);
      begin += document;
    }
    ExpectEvenPieces(row, begin, length - begin);
    if (testing::Test::HasFailure()) return;
  }
}

TEST(Layout, PerDocumentDealsAThousandDocumentsOfOneTokenEvenly) {
  for (int ranks = 2; ranks <= 8; ++ranks) {
    for (const int64_t padding : {0, 1, 7, 100}) {
      const std::vector<int64_t> documents(1'000, 1);
      const RowLayout row = PerDocumentRow(documents, 1'000 + padding, ranks);
      ExpectWhole({{row}}, 1'000 + padding);
      ExpectEvenTotals(row);
    }
  }
}

TEST(Layout, CutsShortDocumentsByTheUnit) {
  Random random(5);
  for (int i = 0; i < 500; ++i) {
    const int ranks = static_cast<int>(random.Between(1, 40));
    const int64_t unit = random.Pick({2, 4, 16});
    std::vector<int64_t> documents(random.Between(1, 60));
    for (int64_t& document : documents)
      document = random.Chance(0.8) ? random.Between(0, 2 * ranks) : random.Between(1, 300);
    const int64_t length = std::accumulate(documents.begin(), documents.end(), int64_t{1});
    SCOPED_TRACE("case " + std::to_string(i));
    const RowLayout row = PerDocumentRow(documents, length, ranks, {}, {2 * ranks, unit});
    ExpectWhole({{row}}, length);
    const std::vector<int64_t> sizes = Sizes({{row}});
    const auto [least, most] = std::minmax_element(sizes.begin(), sizes.end());
    EXPECT_LE(*most - *least, 2 * unit + 1);
    int64_t segments = 0, pieces = 0;
    for (const std::vector<Segment>& of_rank : row) segments += of_rank.size();
    for (int64_t document : documents)
      pieces += document < 2 * ranks ? (document + unit - 1) / unit : 2 * ranks;
    EXPECT_LE(segments, pieces + 1);
    if (testing::Test::HasFailure()) return;
  }
}

TEST(Layout, CuttingByTheUnitIsPyTorchsWhereItAcceptsTheLengths) {
  const std::vector<int64_t> documents = {16, 8, 40, 24};
  EXPECT_EQ(PerDocumentRow(documents, 88, 4, {}, {8, 16}), PerDocumentRow(documents, 88, 4));
}

TEST(Layout, PerDocumentWithOneDocumentIsHeadTail) {
  for (int ranks = 1; ranks <= 8; ++ranks) {
    for (int64_t length = 1; length < 60; ++length) {
      EXPECT_EQ(PerDocumentRow(std::vector<int64_t>{length}, length, ranks),
                HeadTailLayout(length, ranks).rows[0]);
      EXPECT_EQ(PerDocumentRow({}, length, ranks), HeadTailLayout(length, ranks).rows[0]);
    }
  }
}

TEST(Layout, WeightsShiftTheCutsInProportion) {
  EXPECT_THAT(Sizes(ContiguousLayout(600, 3, {1, 2, 3})), ElementsAre(100, 200, 300));
  EXPECT_THAT(Sizes(HeadTailLayout(600, 3, {1, 2, 3})), ElementsAre(100, 200, 300));
  EXPECT_THAT(Sizes(ContiguousLayout(10, 3, {1e300, 1e-300, 1e300})), ElementsAre(5, 0, 5));
  // Of a causal mask, work follows the weights as rows do.
  EXPECT_THAT(CausalWork(HeadTailLayout(600, 2, {1, 2}), 600), ElementsAre(60'100, 120'200));
}

TEST(Layout, WeightsHoldEveryPositionOnceAndKeepToTheShares) {
  Random random(4);
  for (int i = 0; i < 1'000; ++i) {
    const int ranks = static_cast<int>(random.Between(1, 8));
    Weights weights(ranks);
    double sum = 0;
    for (double& weight : weights) sum += weight = 0.1 + random.Fraction() * random.Pick({1, 9});
    std::vector<int64_t> documents(random.Between(0, 60));
    for (int64_t& document : documents) document = random.Between(0, random.Pick({3, 8, 50}));
    const int64_t length = std::max<int64_t>(
        1, std::accumulate(documents.begin(), documents.end(), random.Between(0, 9)));
    SCOPED_TRACE("case " + std::to_string(i));
    const SequenceLayout layouts[] = {ContiguousLayout(length, ranks, weights),
                                      HeadTailLayout(length, ranks, weights),
                                      {{PerDocumentRow(documents, length, ranks, weights)}}};
    for (const SequenceLayout& layout : layouts) {
      ExpectWhole(layout, length);
      for (int rank = 0; rank < ranks; ++rank)
        EXPECT_NEAR(layout.RowsOf(rank, 0), length * weights[rank] / sum, 2.0001);
    }
    if (testing::Test::HasFailure()) return;
  }
}

TEST(Layout, HeadTailGivesEveryRankTheSameCausalWorkWhereItDivides) {
  for (int ranks = 1; ranks <= 8; ++ranks) {
    const std::vector<uint64_t> work = CausalWork(HeadTailLayout(6 * ranks, ranks), 6 * ranks);
    EXPECT_EQ(work, std::vector<uint64_t>(ranks, work[0]));
  }
}

TEST(Layout, GoesIntoProtobufAsItIs) {
  const v1::SequenceLayout proto = ToProto(HeadTailLayout(9, 2));
  ASSERT_EQ(proto.rows_size(), 1);
  ASSERT_EQ(proto.rows(0).ranks_size(), 2);
  ASSERT_EQ(proto.rows(0).ranks(0).segments_size(), 2);
  EXPECT_EQ(proto.rows(0).ranks(0).segments(0).end(), 3);
  EXPECT_EQ(proto.rows(0).ranks(0).segments(1).begin(), 7);
  ASSERT_EQ(proto.rows(0).ranks(1).segments_size(), 1);
  EXPECT_EQ(proto.rows(0).ranks(1).segments(0).begin(), 3);
  EXPECT_EQ(proto.rows(0).ranks(1).segments(0).end(), 7);
}

}  // namespace
}  // namespace ringserve::test
