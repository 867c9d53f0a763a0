// Plans of the backward pass: as those of the forward pass, and what comes to them.
#include <cstdint>
#include <limits>
#include <map>
#include <set>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "proto/tensor_shape.h"
#include "server/plan/cost.h"
#include "server/plan/memory.h"
#include "server/plan/plan.h"
#include "tests/support/random_case.h"

namespace ringserve::test {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr int kMostWorkers = 6;

Plan PlanFor(const Case& c, Pass pass) {
  absl::StatusOr<Plan> plan =
      MakePlan(c.spec, c.options, {.workers = kMostWorkers}, DefaultMeasurements(), pass);
  if (!plan.ok()) throw std::runtime_error(plan.status().ToString());
  return *std::move(plan);
}

// With what is chosen named: over keys that travel.
Case NamedCase(int seed) {
  Case c = RandomCase(seed, kMostWorkers, 100);
  if (seed % 3 == 0) AddRandomExtras(c);
  c.options.set_return_lse(false);
  c.options.set_workers(1 + seed % kMostWorkers);
  c.options.clear_worker_weights();
  c.options.set_rotate(seed % 2 ? v1::ROTATE_METHOD_ALL_GATHER : v1::ROTATE_METHOD_ALL_TO_ALL);
  if (c.options.balancer() <= v1::BALANCER_AUTO) c.options.set_balancer(v1::BALANCER_HEAD_TAIL);
  return c;
}

// By rank: whose keys it has tiles of.
std::vector<std::set<int>> ReadOf(const Plan& plan) {
  std::vector<std::set<int>> read(plan.ranks());
  for (int rank = 0; rank < plan.ranks(); ++rank) {
    for (const v1::Step& step : StepsFor(plan, rank)) {
      for (const v1::Tile& tile : step.tiles()) read[rank].insert(tile.owner());
    }
  }
  return read;
}

TEST(BackwardPlanning, CutsAndMovesKeysAsTheForwardPass) {
  for (int seed = 0; seed < 200; ++seed) {
    const Case c = NamedCase(seed);
    SCOPED_TRACE(c.ToString());
    const Plan forward = PlanFor(c, {}), backward = PlanFor(c, {.backward = true});
    EXPECT_EQ(forward.q, backward.q);
    EXPECT_EQ(forward.kv, backward.kv);
    EXPECT_EQ(forward.work, backward.work);
    const std::vector<std::set<int>> read = ReadOf(forward);
    for (int rank = 0; rank < forward.ranks(); ++rank) {
      const v1::Assignment before = AssignmentFor(forward, rank);
      const v1::Assignment assignment = AssignmentFor(backward, rank);
      EXPECT_FALSE(before.backward() || before.d_lse() || before.readers_size() > 0);
      EXPECT_TRUE(assignment.backward() && !assignment.d_lse());
      ASSERT_EQ(assignment.steps_size(), before.steps_size());
      for (int t = 0; t < assignment.steps_size(); ++t)
        ASSERT_EQ(assignment.steps(t).SerializeAsString(), before.steps(t).SerializeAsString());
      std::set<int> readers;
      for (int other = 0; other < forward.ranks(); ++other) {
        if (other != rank && read[other].contains(rank)) readers.insert(other);
      }
      EXPECT_EQ(std::set<int>(assignment.readers().begin(), assignment.readers().end()), readers);
      EXPECT_EQ(assignment.readers_size(), static_cast<int>(readers.size()));
    }
  }
}

TEST(BackwardPlanning, CountsTheGradientsThatTravel) {
  for (int seed = 0; seed < 200; ++seed) {
    const Case c = NamedCase(seed);
    SCOPED_TRACE(c.ToString());
    const Plan forward = PlanFor(c, {}), backward = PlanFor(c, {.backward = true});
    const std::vector<std::set<int>> read = ReadOf(forward);
    const uint64_t wide = c.spec.dtype() == v1::DTYPE_F64 ? 8 : 4;
    for (int rank = 0; rank < forward.ranks(); ++rank) {
      uint64_t expected = forward.bytes_sent[rank];
      for (const int owner : read[rank]) {
        for (int64_t b = 0; owner != rank && b < c.spec.batch(); ++b) {
          expected += wide * c.spec.kv_heads() * (c.spec.head_dim() + ValueDim(c.spec)) *
                      forward.kv.RowsOf(owner, b);
        }
      }
      if (c.spec.sink_logits() && rank != 0) expected += wide * c.spec.q_heads();
      EXPECT_EQ(backward.bytes_sent[rank], expected) << rank;
    }
    const std::vector<v1::RankSteps> steps = SummarizeSteps(backward);
    for (int rank = 0; rank < forward.ranks(); ++rank) {
      uint64_t bytes = 0, work = 0;
      for (const v1::RankSteps::Step& step : steps[rank].steps()) {
        bytes += step.bytes_sent();
        work += step.work();
        EXPECT_TRUE(step.kv_rank() >= 0 && step.kv_rank() < forward.ranks());
      }
      EXPECT_EQ(bytes, backward.bytes_sent[rank]);
      EXPECT_EQ(work, backward.work[rank]);
    }
  }
}

// Both ends of an exchange are in the same step, and no two ranks exchange two things in one.
TEST(BackwardPlanning, SendsGradientsInTheStepAfterTheirTiles) {
  for (int seed = 0; seed < 200; ++seed) {
    const Case c = NamedCase(seed);
    SCOPED_TRACE(c.ToString());
    const Plan plan = PlanFor(c, {.backward = true});
    std::set<std::tuple<size_t, int, int>> sent, received;  // step, from, to
    std::map<std::pair<int, int>, size_t> computed;         // rank, owner: the step of its tiles
    for (int rank = 0; rank < plan.ranks(); ++rank) {
      const std::vector<v1::Step> steps = BackwardStepsFor(plan, rank);
      for (size_t t = 0; t < steps.size(); ++t) {
        std::set<int> to, from;
        for (const v1::Transfer& send : steps[t].sends()) to.insert(send.peer());
        for (const v1::Transfer& recv : steps[t].recvs()) from.insert(recv.peer());
        for (const int owner : steps[t].partial_sends()) {
          EXPECT_TRUE(to.insert(owner).second);
          EXPECT_EQ((computed.at({rank, owner}) + 1), t);
          computed.erase({rank, owner});
          sent.insert({t, rank, owner});
        }
        for (const int reader : steps[t].partial_recvs()) {
          EXPECT_TRUE(from.insert(reader).second);
          received.insert({t, reader, rank});
        }
        for (const v1::Tile& tile : steps[t].tiles()) {
          if (tile.owner() != rank) computed[{rank, tile.owner()}] = t;
        }
      }
    }
    EXPECT_TRUE(computed.empty());
    EXPECT_EQ(sent, received);
  }
}

Case FewQueries() {
  Case c;
  c.spec.set_batch(1);
  c.spec.set_q_heads(8);
  c.spec.set_kv_heads(2);
  c.spec.set_q_len(4);
  c.spec.set_kv_len(100'000);
  c.spec.set_head_dim(128);
  c.spec.set_dtype(v1::DTYPE_BF16);
  c.options.set_workers(4);
  return c;
}

TEST(BackwardPlanning, NeverLetsQueriesTravel) {
  EXPECT_EQ(PlanFor(FewQueries(), {}).options.rotate(), v1::ROTATE_METHOD_PASS_Q);
  EXPECT_NE(PlanFor(FewQueries(), {.backward = true}).options.rotate(), v1::ROTATE_METHOD_PASS_Q);
}

// One rank: q, k, v, out, lse, d_out and the gradients; deltas of 100 rows, and what sums are
// rounded from.
TEST(BackwardPlanning, ReservesWhatOneRankHolds) {
  Case c = FewQueries();
  c.options.set_workers(1);
  c.spec.set_q_len(100);
  c.spec.set_kv_len(50);
  c.spec.set_head_dim(16);
  c.spec.set_value_dim(8);
  const uint64_t q = 100 * 8 * 16, k = 50 * 2 * 16, v = 50 * 2 * 8, out = 100 * 8 * 8, lse = 800;
  const uint64_t shards = 2 * (q + k + v + out + out) + 4 * lse + 2 * (q + k + v);
  const uint64_t sums = 4 * (q + k + v), deltas = 4 * lse + 3 * 4 * 100 * 8;
  EXPECT_THAT(PlanFor(c, {.backward = true}).peak_bytes, ElementsAre(shards + sums + deltas));
  EXPECT_THAT(PlanFor(c, {.backward = true, .d_lse = true}).peak_bytes,
              ElementsAre(shards + sums + deltas + 4 * lse));
}

TEST(BackwardPlanning, ReservesThreeShardsOfGradientsBesideTheRing) {
  Case c = FewQueries();
  c.options.set_balancer(v1::BALANCER_CONTIGUOUS);
  c.options.set_rotate(v1::ROTATE_METHOD_ALL_TO_ALL);
  c.spec.set_q_len(40);
  c.spec.set_kv_len(4'000);
  c.spec.set_dtype(v1::DTYPE_F32);
  const Plan plan = PlanFor(c, {.backward = true});
  const uint64_t q = 10 * 8 * 128, kv = 1'000 * 2 * 256, lse = 80;
  const uint64_t shards = 4 * (4 * q + 2 * kv + lse);
  EXPECT_EQ(plan.peak_bytes[0], shards + 4 * (2 * kv + 3 * kv + lse + 3 * 10 * 128));
}

TEST(BackwardPlanning, SaturatesMemoryInsteadOfWrappingAround) {
  Case c = FewQueries();
  c.spec.set_batch(1 << 20);
  c.spec.set_q_heads(1 << 9);
  c.spec.set_q_len(1 << 28);
  c.spec.set_kv_len(1 << 10);
  c.spec.set_dtype(v1::DTYPE_F32);
  c.spec.set_head_dim(1024);
  EXPECT_EQ(PlanFor(c, {.backward = true}).peak_bytes[0], std::numeric_limits<uint64_t>::max());
}

TEST(BackwardPlanning, TakesFiveProductsWhereTheForwardPassTakesTwo) {
  Case c = FewQueries();
  EXPECT_DOUBLE_EQ(SpeedOf({}, c.spec, {.backward = true}).seconds_per_pair,
                   2.5 * SpeedOf({}, c.spec).seconds_per_pair);
}

TEST(BackwardPlanning, SaysSoToPeople) {
  Case c = FewQueries();
  c.spec.set_kv_len(4'000);
  const std::string text = Describe(PlanFor(c, {.backward = true}));
  EXPECT_THAT(text, HasSubstr("gradients of "));
  EXPECT_THAT(text, HasSubstr("gradients>"));
}

}  // namespace
}  // namespace ringserve::test
