// What the ranks of a plan do, step by step: replayed, counted, and held against PyTorch's ring.
#include <map>
#include <set>
#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "server/plan/memory.h"
#include "server/plan/plan.h"
#include "tests/plan/visible_pairs.h"
#include "tests/support/random_case.h"
#include "tests/support/safetensors.h"

namespace ringserve::test {
namespace {

constexpr int kMostWorkers = 8;

Plan PlanOf(const Case& c) {
  absl::StatusOr<Plan> plan =
      MakePlan(c.spec, c.options, {.workers = kMostWorkers}, DefaultMeasurements());
  if (!plan.ok()) throw std::runtime_error(plan.status().ToString());
  return *std::move(plan);
}

using StepsByRank = std::vector<std::vector<v1::Step>>;

StepsByRank StepsOf(const Plan& plan) {
  StepsByRank steps;
  for (int rank = 0; rank < plan.ranks(); ++rank) steps.push_back(StepsFor(plan, rank));
  return steps;
}

TEST(Steps, ShowEveryVisiblePairOnceAndNoOther) {
  for (int seed = 0; seed < 1'000; ++seed) {
    const Case c = RandomCase(seed, kMostWorkers, 48);
    SCOPED_TRACE(c.ToString());
    const Plan plan = PlanOf(c);
    const StepsByRank steps = StepsOf(plan);
    const Sees sees = MaskOf(c.spec);
    for (int64_t b = 0; b < c.spec.batch(); ++b) {
      PairCounts shown(c.spec.q_len(), c.spec.kv_len());
      for (int rank = 0; rank < plan.ranks(); ++rank) {
        for (const v1::Step& step : steps[rank]) {
          for (const v1::Tile& tile : step.tiles()) {
            ForEachPair(plan, rank, b, tile, [&](int64_t q, int64_t k) { ++shown.at(q, k); });
          }
        }
      }
      ASSERT_EQ(shown, PairsOf(c.spec, sees, b)) << Describe(plan);
    }
  }
}

// Sends and receives meet: same step, same shard; nobody sends or reads what it does not hold.
TEST(Steps, ExchangeWhatTheyReadAndNothingElse) {
  for (int seed = 0; seed < 1'000; ++seed) {
    const Case c = RandomCase(seed, kMostWorkers, 48);
    SCOPED_TRACE(c.ToString());
    const Plan plan = PlanOf(c);
    const StepsByRank steps = StepsOf(plan);
    std::vector<std::set<int>> held(plan.ranks());
    for (int rank = 0; rank < plan.ranks(); ++rank) held[rank] = {rank};
    for (size_t t = 0; t <= static_cast<size_t>(std::max(1, plan.ranks())); ++t) {
      std::set<std::tuple<int, int, int>> sent, received;  // (from, to, owner)
      for (int rank = 0; rank < plan.ranks(); ++rank) {
        if (t >= steps[rank].size()) continue;
        for (const v1::Transfer& send : steps[rank][t].sends()) {
          ASSERT_TRUE(held[rank].count(send.owner())) << Describe(plan);
          ASSERT_TRUE(sent.insert({rank, send.peer(), send.owner()}).second);
        }
        for (const v1::Transfer& recv : steps[rank][t].recvs()) {
          ASSERT_TRUE(received.insert({recv.peer(), rank, recv.owner()}).second);
        }
        for (const v1::Tile& tile : steps[rank][t].tiles()) {
          ASSERT_TRUE(held[rank].count(tile.owner())) << Describe(plan);
        }
      }
      ASSERT_EQ(sent, received) << Describe(plan);
      for (const auto& [from, to, owner] : received) {
        ASSERT_TRUE(held[to].insert(owner).second) << "rank " << to << " has it twice";
      }
    }
  }
}

// Pass-Q: what a rank computed for another goes there once, after the last of it and before the
// plan ends; and in one step nobody sends two things to the same rank.
TEST(Steps, ReturnEveryPartialOnceAndWhole) {
  for (int seed = 0; seed < 500; ++seed) {
    Case c = RandomCase(seed, kMostWorkers, 48);
    c.options.set_rotate(v1::ROTATE_METHOD_PASS_Q);
    SCOPED_TRACE(c.ToString());
    const Plan plan = PlanOf(c);
    const StepsByRank steps = StepsOf(plan);
    using Ways = std::set<std::tuple<size_t, int, int>>;  // (step, from, to)
    Ways sent, received;
    std::set<std::pair<int, int>> computed, returned;  // (by, for)
    for (int rank = 0; rank < plan.ranks(); ++rank) {
      ASSERT_LE(steps[rank].size(), static_cast<size_t>(plan.ranks()) + 1);
      for (size_t t = 0; t < steps[rank].size(); ++t) {
        std::set<int> to, from;
        for (const v1::Transfer& send : steps[rank][t].sends()) to.insert(send.peer());
        for (const v1::Transfer& recv : steps[rank][t].recvs()) from.insert(recv.peer());
        for (const int owner : steps[rank][t].partial_sends()) {
          ASSERT_TRUE(to.insert(owner).second) << Describe(plan);
          ASSERT_TRUE(computed.contains({rank, owner})) << Describe(plan);
          ASSERT_TRUE(returned.insert({rank, owner}).second);
          sent.insert({t, rank, owner});
        }
        for (const int peer : steps[rank][t].partial_recvs()) {
          ASSERT_TRUE(from.insert(peer).second) << Describe(plan);
          received.insert({t, peer, rank});
        }
        for (const v1::Tile& tile : steps[rank][t].tiles()) {
          ASSERT_FALSE(returned.contains({rank, tile.owner()})) << Describe(plan);
          if (tile.owner() != rank) computed.insert({rank, tile.owner()});
        }
      }
    }
    ASSERT_EQ(sent, received) << Describe(plan);
    ASSERT_EQ(computed, returned) << Describe(plan);
  }
}

// Keys stay, queries come by: what rank r does in step t is the work of the queries of rank r - t.
TEST(Steps, OfPassQVisitTheRanksInTurn) {
  for (int seed = 0; seed < 300; ++seed) {
    Case c = RandomCase(seed, kMostWorkers, 48);
    c.options.set_rotate(v1::ROTATE_METHOD_PASS_Q);
    SCOPED_TRACE(c.ToString());
    const Plan plan = PlanOf(c);
    const int ranks = plan.ranks();
    std::vector<int> last_needed(ranks), travelled(ranks);
    for (int rank = 0; rank < ranks; ++rank) {
      int t = 0;
      for (const v1::Step& step : StepsFor(plan, rank)) {
        for (const v1::Tile& tile : step.tiles()) {
          ASSERT_EQ(tile.owner(), (rank - t + ranks) % ranks);
          last_needed[tile.owner()] = std::max(last_needed[tile.owner()], t);
        }
        for (const v1::Transfer& send : step.sends()) {
          ASSERT_EQ(send.peer(), (rank + 1) % ranks);
          ASSERT_EQ(send.owner(), (rank - t + ranks) % ranks);
          ++travelled[send.owner()];
        }
        ++t;
      }
    }
    EXPECT_EQ(travelled, last_needed) << Describe(plan);
  }
}

// One query over the keys of four ranks.
TEST(Steps, OfPassQGiveRanksWithoutQueriesWorkOnTheirKeys) {
  Case c;
  c.spec.set_batch(1);
  c.spec.set_q_heads(8);
  c.spec.set_kv_heads(2);
  c.spec.set_q_len(1);
  c.spec.set_kv_len(4'000);
  c.spec.set_head_dim(64);
  c.spec.set_dtype(v1::DTYPE_BF16);
  c.options.set_workers(4);
  c.options.set_balancer(v1::BALANCER_CONTIGUOUS);
  c.options.set_rotate(v1::ROTATE_METHOD_PASS_Q);
  const Plan plan = PlanOf(c);
  EXPECT_EQ(plan.work, (std::vector<uint64_t>{1'000, 1'000, 1'000, 1'000}));
  // One query to the next three ranks; three partials of 65 fp32 numbers for each head.
  const uint64_t query = 8 * 64 * 2, partial = 8 * 65 * 4;
  EXPECT_EQ(plan.bytes_sent,
            (std::vector<uint64_t>{query, query + partial, query + partial, partial}));
  EXPECT_EQ(plan.imbalance_total, 1);
  EXPECT_EQ(plan.imbalance, 4) << "one rank at a time has the only query";
}

TEST(Steps, SendTheBytesAndDoTheWorkOfThePlan) {
  for (int seed = 0; seed < 500; ++seed) {
    const Case c = RandomCase(seed, kMostWorkers, 200);
    SCOPED_TRACE(c.ToString());
    const Plan plan = PlanOf(c);
    const std::vector<uint64_t> shard_bytes = plan.options.rotate() == v1::ROTATE_METHOD_PASS_Q
                                                  ? QShardBytes(plan.spec, plan.q)
                                                  : KvShardBytes(plan.spec, plan.kv);
    const std::vector<uint64_t> partial_bytes = PartialBytes(plan.spec, plan.q);
    const std::vector<v1::RankSteps> summary = SummarizeSteps(plan);
    for (int rank = 0; rank < plan.ranks(); ++rank) {
      uint64_t bytes = 0, summed_bytes = 0, summed_work = 0;
      for (const v1::Step& step : StepsFor(plan, rank)) {
        for (const v1::Transfer& send : step.sends()) bytes += shard_bytes[send.owner()];
        for (const int owner : step.partial_sends()) bytes += partial_bytes[owner];
      }
      for (const v1::RankSteps::Step& step : summary[rank].steps()) {
        summed_bytes += step.bytes_sent();
        summed_work += step.work();
      }
      EXPECT_EQ(bytes, plan.bytes_sent[rank]);
      EXPECT_EQ(summed_bytes, plan.bytes_sent[rank]);
      EXPECT_EQ(summed_work, plan.work[rank]);
    }
  }
}

// A shard travels with Hkv heads and no padding.
TEST(Steps, MoveUnrepeatedHeads) {
  v1::AttentionSpec spec;
  spec.set_batch(2);
  spec.set_q_heads(8);
  spec.set_kv_heads(2);
  spec.set_q_len(20);
  spec.set_kv_len(20);
  spec.set_head_dim(24);
  spec.set_value_dim(7);
  spec.set_dtype(v1::DTYPE_BF16);
  v1::AttentionOptions options;
  options.set_workers(2);
  options.set_balancer(v1::BALANCER_CONTIGUOUS);
  options.set_rotate(v1::ROTATE_METHOD_ALL_TO_ALL);
  const absl::StatusOr<Plan> plan = MakePlan(spec, options, {.workers = 2}, DefaultMeasurements());
  ASSERT_TRUE(plan.ok()) << plan.status();
  const uint64_t shard = 2 * 2 * 10 * (24 + 7) * 2;
  EXPECT_EQ(plan->bytes_sent, (std::vector<uint64_t>{shard, shard}));
}

Plan RingPlan(int64_t length, int ranks, bool load_balance, bool is_causal) {
  Case c;
  c.spec.set_batch(1);
  c.spec.set_q_heads(1);
  c.spec.set_kv_heads(1);
  c.spec.set_q_len(length);
  c.spec.set_kv_len(length);
  c.spec.set_head_dim(8);
  c.spec.set_dtype(v1::DTYPE_F32);
  if (is_causal) c.spec.add_masks()->set_causal(true);
  c.options.set_workers(ranks);
  c.options.set_balancer(load_balance ? v1::BALANCER_HEAD_TAIL : v1::BALANCER_CONTIGUOUS);
  c.options.set_rotate(v1::ROTATE_METHOD_ALL_TO_ALL);
  return PlanOf(c);
}

// PyTorch's _is_causal_behavior, read off our tiles.
std::string CausalBehavior(const std::vector<v1::Step>& steps, int step) {
  if (step >= static_cast<int>(steps.size()) || steps[step].tiles().empty()) return "SKIP";
  for (const v1::Tile& tile : steps[step].tiles()) {
    if (tile.has_hi()) return "IS_CAUSAL";
  }
  return "NOT_IS_CAUSAL";
}

TEST(Steps, AreCausalPlainOrSkippedAsPyTorchs) {
  const nlohmann::json golden = ReadGoldenJson("golden/causal_behavior.json");
  int tables = 0;
  for (const nlohmann::json& table : golden.at("tables")) {
    const int ranks = table.at("world_size");
    SCOPED_TRACE(table.dump());
    const Plan plan = RingPlan(6 * ranks, ranks, table.at("load_balance"), table.at("is_causal"));
    for (int rank = 0; rank < ranks; ++rank) {
      const std::vector<v1::Step> steps = StepsFor(plan, rank);
      for (int step = 0; step < ranks; ++step) {
        EXPECT_EQ(CausalBehavior(steps, step), table.at("behavior")[rank][step].get<std::string>())
            << "rank " << rank << " step " << step;
      }
    }
    ++tables;
  }
  EXPECT_EQ(tables, 32);
}

using Pairs = std::set<std::pair<int64_t, int64_t>>;

// Which pairs PyTorch's ring computes in each of its calls, and ours in each step.
TEST(Steps, ShowThePairsOfPyTorchsCalls) {
  const nlohmann::json golden = ReadGoldenJson("golden/ring.json");
  int schedules = 0;
  for (const nlohmann::json& schedule : golden.at("schedules")) {
    const int ranks = schedule.at("world_size");
    SCOPED_TRACE(schedule.dump());
    const Plan plan =
        RingPlan(schedule.at("S"), ranks, schedule.at("load_balance"), schedule.at("is_causal"));
    for (int rank = 0; rank < ranks; ++rank) {
      std::vector<Pairs> expected, actual;
      for (const nlohmann::json& call : schedule.at("calls_by_rank")[rank]) {
        Pairs& pairs = expected.emplace_back();
        const auto q = call.at("q_tokens").get<std::vector<int64_t>>();
        const auto k = call.at("k_tokens").get<std::vector<int64_t>>();
        for (size_t i = 0; i < q.size(); ++i) {
          for (size_t j = 0; j < k.size(); ++j) {
            if (!call.at("is_causal") || j <= i) pairs.insert({q[i], k[j]});
          }
        }
      }
      for (const v1::Step& step : StepsFor(plan, rank)) {
        if (step.tiles().empty()) continue;
        EXPECT_EQ(step.tiles_size(), 1) << "one call a step, as there";
        Pairs& pairs = actual.emplace_back();
        for (const v1::Tile& tile : step.tiles()) {
          ForEachPair(plan, rank, 0, tile, [&](int64_t q, int64_t k) { pairs.insert({q, k}); });
        }
      }
      EXPECT_EQ(actual, expected) << "rank " << rank << "\n" << Describe(plan);
    }
    ++schedules;
  }
  EXPECT_GE(schedules, 10);
}

TEST(Steps, OfAllGatherMoveEverythingFirst) {
  for (int seed = 0; seed < 300; ++seed) {
    Case c = RandomCase(seed, kMostWorkers, 48);
    c.options.set_rotate(v1::ROTATE_METHOD_ALL_GATHER);
    const Plan plan = PlanOf(c);
    for (const std::vector<v1::Step>& steps : StepsOf(plan)) {
      ASSERT_LE(steps.size(), 2u);
      if (plan.ranks() > 1 && !steps.empty()) {
        EXPECT_TRUE(steps[0].tiles().empty());
      }
      if (steps.size() == 2) {
        EXPECT_EQ(steps[1].sends_size() + steps[1].recvs_size(), 0);
      }
    }
  }
}

}  // namespace
}  // namespace ringserve::test
