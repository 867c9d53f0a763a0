// Tiles of requests whose scores depend on positions: a bias, ALiBi slopes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "server/plan/memory.h"
#include "server/plan/plan.h"
#include "tests/plan/visible_pairs.h"
#include "tests/support/random_case.h"

namespace ringserve::test {
namespace {

using ::testing::HasSubstr;

constexpr int kMostWorkers = 8;

Case PlacedCase(int seed, int64_t most_rows) {
  Case c = RandomCase(seed, kMostWorkers, most_rows);
  AddRandomExtras(c);
  if (!c.spec.has_bias()) c.spec.set_alibi_slopes(true);
  return c;
}

Plan PlanOf(const Case& c) {
  absl::StatusOr<Plan> plan =
      MakePlan(c.spec, c.options, {.workers = kMostWorkers}, DefaultMeasurements());
  if (!plan.ok()) throw std::runtime_error(plan.status().ToString());
  return *std::move(plan);
}

// visit(rank, tile)
template <typename Visit>
void ForEachTile(const Plan& plan, Visit visit) {
  for (int rank = 0; rank < plan.ranks(); ++rank) {
    for (const v1::Step& step : StepsFor(plan, rank)) {
      for (const v1::Tile& tile : step.tiles()) visit(rank, tile);
    }
  }
}

TEST(PlacedTiles, ShowEveryVisiblePairOnceAndNoOther) {
  for (int seed = 0; seed < 600; ++seed) {
    const Case c = PlacedCase(seed, 48);
    SCOPED_TRACE(c.ToString());
    const Plan plan = PlanOf(c);
    const Sees sees = MaskOf(c.spec);
    for (int64_t b = 0; b < c.spec.batch(); ++b) {
      PairCounts shown(c.spec.q_len(), c.spec.kv_len());
      ForEachTile(plan, [&](int rank, const v1::Tile& tile) {
        ForEachPair(plan, rank, b, tile, [&](int64_t q, int64_t k) { ++shown.at(q, k); });
      });
      ASSERT_EQ(shown, PairsOf(c.spec, sees, b)) << Describe(plan);
    }
  }
}

// Of every pair, from the tile's corner alone.
TEST(PlacedTiles, SayWhereTheirPairsAreInTheRequest) {
  for (int seed = 0; seed < 600; ++seed) {
    const Case c = PlacedCase(seed, 48);
    SCOPED_TRACE(c.ToString());
    const Plan plan = PlanOf(c);
    const Distance distance = DistanceOf(c.spec);
    for (int64_t b = 0; b < c.spec.batch(); ++b) {
      ForEachTile(plan, [&](int rank, const v1::Tile& tile) {
        if (tile.batch_row() >= 0 && tile.batch_row() != b) return;
        const auto [q_rank, k_rank] = SidesOf(plan, rank, tile);
        const std::vector<int64_t> q = PositionsOf(plan.q.row(b), q_rank);
        const std::vector<int64_t> k = PositionsOf(plan.kv.row(b), k_rank);
        for (int64_t i = 0; tile.q_begin() + i < tile.q_end(); ++i) {
          for (int64_t j = 0; tile.k_begin() + j < tile.k_end(); ++j) {
            const int64_t key = k.at(tile.k_begin() + j);
            ASSERT_EQ(key, tile.k_position() + j) << tile.ShortDebugString();
            if (!c.spec.alibi_slopes()) continue;
            ASSERT_EQ(std::abs(tile.distance() + i - j), distance(b, q.at(tile.q_begin() + i), key))
                << tile.ShortDebugString();
          }
        }
      });
    }
  }
}

TEST(PlacedTiles, AreNoMoreThanTheWorkloadSays) {
  for (int seed = 0; seed < 400; ++seed) {
    const Case c = PlacedCase(seed, 300);
    SCOPED_TRACE(c.ToString());
    const Plan plan = PlanOf(c);
    const Tiling tiling = {.fuses = false, .per_batch_row = plan.alignments.size() > 1};
    const bool pass_q = plan.options.rotate() == v1::ROTATE_METHOD_PASS_Q;
    const int64_t most =
        pass_q ? MakePassQWorkload(plan.q, plan.kv, plan.bands, c.spec.batch(), {}, tiling).pieces
               : MakeWorkload(plan.q, plan.kv, plan.bands, c.spec.batch(), {}, tiling).pieces;
    std::vector<int64_t> tiles(plan.ranks());
    ForEachTile(plan, [&](int rank, const v1::Tile&) { ++tiles[rank]; });
    EXPECT_LE(*std::max_element(tiles.begin(), tiles.end()), most);
  }
}

v1::AttentionSpec SmallSpec() {
  v1::AttentionSpec spec;
  spec.set_batch(2);
  spec.set_q_heads(4);
  spec.set_kv_heads(2);
  spec.set_q_len(6);
  spec.set_kv_len(10);
  spec.set_head_dim(8);
  spec.set_dtype(v1::DTYPE_BF16);
  return spec;
}

v1::AttentionOptions TwoRanks() {
  v1::AttentionOptions options;
  options.set_workers(2);
  options.set_balancer(v1::BALANCER_CONTIGUOUS);
  options.set_rotate(v1::ROTATE_METHOD_ALL_TO_ALL);
  return options;
}

// Full attention whatever the alignment, but not the same distances.
TEST(PlacedTiles, AreThoseOfOneBatchRowWhereRowsAreAlignedEachItsOwnWay) {
  v1::AttentionSpec spec = SmallSpec();
  spec.set_alibi_slopes(true);
  spec.add_masks();
  spec.add_masks()->set_bottom_right(true);
  const absl::StatusOr<Plan> plan = MakePlan(spec, TwoRanks(), {.workers = 2}, {});
  ASSERT_TRUE(plan.ok()) << plan.status();
  std::vector<int64_t> first_of_row(2, -1);
  ForEachTile(*plan, [&](int rank, const v1::Tile& tile) {
    ASSERT_GE(tile.batch_row(), 0);
    if (rank == 0 && tile.owner() == 0) first_of_row[tile.batch_row()] = tile.distance();
  });
  EXPECT_EQ(first_of_row, (std::vector<int64_t>{0, 4}));
}

TEST(ExtraBytes, AreTheRowsOfTheRanksQueriesAndAllThatIsPerHead) {
  v1::AttentionSpec spec = SmallSpec();
  const SequenceLayout shared = ContiguousLayout(6, 2);
  EXPECT_EQ(ExtraBytes(spec, shared), (std::vector<uint64_t>{0, 0}));
  spec.set_alibi_slopes(true);
  EXPECT_EQ(ExtraBytes(spec, shared), (std::vector<uint64_t>{16, 16}));
  spec.set_sink_logits(true);
  spec.mutable_bias();
  EXPECT_EQ(ExtraBytes(spec, shared)[0], 32u + 3 * 10 * 2);
  spec.mutable_bias()->set_boolean(true);
  spec.mutable_bias()->set_per_head(true);
  EXPECT_EQ(ExtraBytes(spec, shared)[0], 32u + 4 * 3 * 10);
  spec.mutable_bias()->set_per_batch(true);
  EXPECT_EQ(ExtraBytes(spec, shared)[0], 32u + 2 * 4 * 3 * 10);
  // Rows that lie elsewhere in each batch row are held once for each.
  SequenceLayout own = shared;
  own.rows.push_back({{{{0, 1}}, {{1, 6}}}});
  spec.mutable_bias()->set_per_batch(false);
  EXPECT_EQ(ExtraBytes(spec, own),
            (std::vector<uint64_t>{32 + 4 * (3 + 1) * 10, 32 + 4 * (3 + 5) * 10}));
}

TEST(ExtraBytes, ArePartOfWhatAPlanReserves) {
  v1::AttentionSpec spec = SmallSpec();
  const absl::StatusOr<Plan> without = MakePlan(spec, TwoRanks(), {.workers = 2}, {});
  spec.set_sink_logits(true);
  const absl::StatusOr<Plan> with = MakePlan(spec, TwoRanks(), {.workers = 2}, {});
  ASSERT_TRUE(without.ok() && with.ok());
  EXPECT_EQ(with->peak_bytes[0], without->peak_bytes[0] + 16);
}

TEST(Description, NamesWhatIsAddedToTheScores) {
  v1::AttentionSpec spec = SmallSpec();
  spec.set_alibi_slopes(true);
  spec.set_sink_logits(true);
  spec.mutable_bias()->set_per_head(true);
  const absl::StatusOr<Plan> plan = MakePlan(spec, TwoRanks(), {.workers = 2}, {});
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_THAT(Describe(*plan), HasSubstr("bias [1, 4, 6, 10] of 480 B, ALiBi, sink logits"));
}

}  // namespace
}  // namespace ringserve::test
