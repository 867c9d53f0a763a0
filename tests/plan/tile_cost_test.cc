#include "server/plan/tile_cost.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/plan/one_head_spec.h"
#include "tests/support/random.h"

namespace ringserve::test {
namespace {

double OwnCost(const Band& band, double group = 1) {
  return TileCost(Normalized(band), Kernel::kAnyBand, group);
}

TEST(TileCost, IsLittleMoreThanTheAreaOfALargeTile) {
  const Band full{.q_end = 4'096, .k_end = 4'096};
  EXPECT_GE(OwnCost(full), Area(full));
  EXPECT_LE(OwnCost(full), 1.06 * Area(full));
  const Band causal = Normalized({.q_end = 8'192, .k_end = 8'192, .hi = 0});
  EXPECT_LE(OwnCost(causal), 1.06 * Area(causal));
}

TEST(TileCost, CountsPanelsThatADiagonalCuts) {
  // Blocks of 64 queries see 128 keys each, of which a window of 64 shows half.
  const Band window = Normalized({.q_end = 8'192, .k_end = 8'192, .lo = -63, .hi = 0});
  EXPECT_GT(OwnCost(window), 2 * Area(window));
  EXPECT_LT(OwnCost(window), 3 * Area(window));
  // A single key takes as long as a panel of 64.
  EXPECT_NEAR(OwnCost({.q_end = 64, .k_end = 1}), OwnCost({.q_end = 64, .k_end = 64}), 63 * 28 + 1);
}

TEST(TileCost, IsSharedByTheHeadsThatShareKeys) {
  const Band few{.q_end = 1, .k_end = 2'048};
  EXPECT_GT(OwnCost(few, 1), 2 * OwnCost(few, 8));
}

TEST(TileCost, IsNeverLessThanTheArea) {
  Random random(1);
  for (int i = 0; i < 5'000; ++i) {
    Band band{.q_end = random.BetweenByMagnitude(1, 100'000),
              .k_end = random.BetweenByMagnitude(1, 100'000)};
    if (random.Chance(0.5)) band.lo = random.Between(-band.q_end, band.k_end);
    if (random.Chance(0.5)) band.hi = std::max(band.lo, -band.q_end) + random.Between(0, 5'000);
    band = Normalized(band);
    if (Empty(band)) continue;
    // Of more than 256 blocks a sample stands for all.
    EXPECT_GE(TileCost(band, Kernel::kAnyBand, 8), 0.98 * Area(band)) << ToString(band);
    EXPECT_GE(TileCost(band, Kernel::kMasks, 8), Area(band)) << ToString(band);
  }
}

TEST(TileCost, OfAPlanIsThatOfItsSteps) {
  v1::AttentionSpec spec = OneHeadSpec(1, 2'048, 2'048);
  spec.add_masks()->set_causal(true);
  v1::AttentionOptions options;
  options.set_workers(2);
  options.set_balancer(v1::BALANCER_CONTIGUOUS);
  options.set_rotate(v1::ROTATE_METHOD_ALL_TO_ALL);
  const absl::StatusOr<Plan> plan = MakePlan(spec, options, {2}, DefaultMeasurements());
  ASSERT_TRUE(plan.ok());
  const Speed speed{.seconds_per_pair = 1};
  const ComputeSeconds compute = ComputeOfTiles(*plan, {}, speed);
  const double causal = OwnCost({.q_end = 1'024, .k_end = 1'024, .hi = 0});
  const double full = OwnCost({.q_end = 1'024, .k_end = 1'024});
  ASSERT_EQ(compute.lockstep.size(), 2u);
  EXPECT_NEAR(compute.lockstep[0], causal, 1e-3);
  EXPECT_NEAR(compute.lockstep[1], full, 1e-3);
  EXPECT_NEAR(compute.lockstep_total, causal + full, 1e-3);
  EXPECT_NEAR(compute.busiest, causal + full, 1e-3);
  EXPECT_NEAR(compute.mean, causal + full / 2, 1e-3);
  EXPECT_EQ(compute.tiles, 2);
  const double slow_second[] = {1, 3};
  const ComputeSeconds paced = ComputeOfTiles(*plan, slow_second, speed);
  EXPECT_NEAR(paced.busiest, 3 * (causal + full), 1e-3);
}

}  // namespace
}  // namespace ringserve::test
