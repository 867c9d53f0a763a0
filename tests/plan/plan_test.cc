#include "server/plan/plan.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <numeric>
#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "proto/protocol.h"
#include "proto/tensor_shape.h"
#include "server/plan/cost.h"
#include "server/plan/memory.h"
#include "server/plan/workload.h"
#include "tests/support/random.h"
#include "tests/support/random_case.h"

namespace ringserve::test {
namespace {

using ::testing::AllOf;
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Le;

v1::AttentionSpec CausalSpec(int64_t length) {
  v1::AttentionSpec spec;
  spec.set_batch(1);
  spec.set_q_heads(8);
  spec.set_kv_heads(2);
  spec.set_q_len(length);
  spec.set_kv_len(length);
  spec.set_head_dim(128);
  spec.set_dtype(v1::DTYPE_F32);
  spec.add_masks()->set_causal(true);
  return spec;
}

v1::AttentionOptions Options(int workers, v1::Balancer balancer = v1::BALANCER_AUTO,
                             v1::RotateMethod rotate = v1::ROTATE_METHOD_AUTO) {
  v1::AttentionOptions options;
  options.set_workers(workers);
  options.set_balancer(balancer);
  options.set_rotate(rotate);
  return options;
}

Plan PlanOf(const v1::AttentionSpec& spec, const v1::AttentionOptions& options, int workers,
            uint64_t memory_bytes = 0) {
  absl::StatusOr<Plan> plan =
      MakePlan(spec, options, {workers, memory_bytes}, DefaultMeasurements());
  if (!plan.ok()) throw std::runtime_error(plan.status().ToString());
  return *std::move(plan);
}

TEST(Planner, BalancesCausalWorkExactlyWhereItDivides) {
  for (int workers = 1; workers <= 8; ++workers) {
    const Plan plan =
        PlanOf(CausalSpec(1024 * workers),
               Options(workers, v1::BALANCER_HEAD_TAIL, v1::ROTATE_METHOD_ALL_TO_ALL), workers);
    EXPECT_NEAR(plan.imbalance, 1, 0.0005) << workers;
    EXPECT_EQ(plan.imbalance_total, 1) << workers;
    EXPECT_FALSE(plan.imbalance_is_bound);
    EXPECT_THAT(plan.work, Each(plan.work[0]));
  }
}

TEST(Planner, TellsTheImbalanceThatLockstepWaitsFor) {
  // Contiguous causal over 2 ranks of 4 rows: step 0 takes 10 pairs on both, step 1 takes 0 and 16.
  const Plan ring =
      PlanOf(CausalSpec(8), Options(2, v1::BALANCER_CONTIGUOUS, v1::ROTATE_METHOD_ALL_TO_ALL), 2);
  EXPECT_THAT(ring.work, ElementsAre(10, 26));
  EXPECT_DOUBLE_EQ(ring.imbalance, 26 / 18.0);
  EXPECT_DOUBLE_EQ(ring.imbalance_total, 26 / 18.0);
  // Over 3 ranks of 2 rows: 3 pairs each, then 0, 4, 4, then 0, 0, 4; totals 3, 7, 11.
  const Plan three =
      PlanOf(CausalSpec(6), Options(3, v1::BALANCER_CONTIGUOUS, v1::ROTATE_METHOD_ALL_TO_ALL), 3);
  EXPECT_THAT(three.work, ElementsAre(3, 7, 11));
  EXPECT_DOUBLE_EQ(three.imbalance, 11 / 7.0);
}

TEST(Planner, GivesAShortSequenceToOneWorker) {
  EXPECT_EQ(PlanOf(CausalSpec(128), Options(0), 8).ranks(), 1);
  EXPECT_EQ(PlanOf(CausalSpec(1), Options(0), 8).ranks(), 1);
  EXPECT_EQ(PlanOf(CausalSpec(32'768), Options(0), 8).ranks(), 8);
}

TEST(Planner, TakesAsManyWorkersAsAsked) {
  for (int workers = 1; workers <= 4; ++workers) {
    const Plan plan = PlanOf(CausalSpec(3), Options(workers), 4);
    EXPECT_EQ(plan.ranks(), workers);
    EXPECT_EQ(plan.options.workers(), workers);
  }
}

TEST(Planner, PrefersHeadTailForCausalMasks) {
  const Plan plan = PlanOf(CausalSpec(16'384), Options(4), 4);
  EXPECT_EQ(plan.options.balancer(), v1::BALANCER_HEAD_TAIL);
  EXPECT_NE(plan.options.rotate(), v1::ROTATE_METHOD_AUTO);
  EXPECT_THAT(plan.reason, AllOf(HasSubstr("workers 4 as asked"), HasSubstr("head-tail")));
}

TEST(Planner, NeverLeavesAnOptionOpen) {
  for (int seed = 0; seed < 500; ++seed) {
    const Case c = RandomCase(seed, 8, 300);
    const absl::StatusOr<Plan> plan =
        MakePlan(c.spec, c.options, {.workers = 8}, DefaultMeasurements());
    ASSERT_TRUE(plan.ok()) << c.ToString();
    const v1::AttentionOptions& options = plan->options;
    EXPECT_GT(options.balancer(), v1::BALANCER_AUTO);
    EXPECT_TRUE(c.options.balancer() <= v1::BALANCER_AUTO ||
                c.options.balancer() == options.balancer());
    EXPECT_EQ(options.ptrr_block() > 0, options.balancer() == v1::BALANCER_PTRR);
    EXPECT_GT(options.rotate(), v1::ROTATE_METHOD_AUTO);
    EXPECT_TRUE(c.options.rotate() <= v1::ROTATE_METHOD_AUTO ||
                c.options.rotate() == options.rotate());
    EXPECT_EQ(options.workers(), plan->ranks());
    EXPECT_GE(plan->ranks(), 1);
    EXPECT_EQ(plan->spec.value_dim(), ValueDim(c.spec));
    EXPECT_TRUE(plan->spec.has_scale());
    EXPECT_TRUE(c.options.workers() == 0 || plan->ranks() == c.options.workers());
    EXPECT_GE(plan->imbalance, 1 - 1e-12);
    EXPECT_GE(plan->imbalance, plan->imbalance_total - 1e-12);
    if (options.worker_weights().empty()) {
      EXPECT_LE(plan->imbalance, plan->ranks() + 1e-12);
    }
    EXPECT_FALSE(Describe(*plan).empty());
  }
}

TEST(Planner, KeepsWithinMemoryWhereItCan) {
  const v1::AttentionSpec spec = CausalSpec(2'000);
  const Plan free = PlanOf(spec, Options(0), 8);
  const uint64_t alone = PlanOf(spec, Options(1), 8).peak_bytes[0];
  const Plan tight = PlanOf(spec, Options(0), 8, alone / 2);
  EXPECT_GT(tight.ranks(), 1);
  EXPECT_THAT(tight.peak_bytes, Each(Le(alone / 2)));
  EXPECT_GE(tight.ranks(), free.ranks());
  const absl::Status status =
      MakePlan(spec, Options(0), {8, 1'000}, DefaultMeasurements()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("limit 1000"));
}

TEST(Planner, SaysWhatIsMissing) {
  const v1::AttentionSpec spec = CausalSpec(100);
  const auto status = [&](const v1::AttentionOptions& options, int workers) {
    return MakePlan(spec, options, {workers}, DefaultMeasurements()).status();
  };
  EXPECT_EQ(status(Options(0), 0).code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(status(Options(3), 2).code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status(Options(3), 2).message()), HasSubstr("only 2 workers"));
}

TEST(Planner, RefusesMorePairsThanItCanCount) {
  v1::AttentionSpec spec = CausalSpec(std::numeric_limits<int32_t>::max());
  spec.set_batch(2);
  spec.clear_masks();
  const absl::Status status = MakePlan(spec, Options(0), {4}, DefaultMeasurements()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("2^62"));
}

TEST(Planner, RefusesAPartOfMorePiecesThanOneMessageHolds) {
  const auto plan = [](int64_t rows, int workers) {
    v1::AttentionSpec spec = CausalSpec(1 << 22);
    spec.set_batch(rows);
    while (spec.masks_size() < rows) {
      v1::Mask* mask = spec.add_masks();  // a rectangle and a triangle
      mask->set_causal(true);
      mask->set_q_offset((1 << 21) + spec.masks_size() % 3);
    }
    return MakePlan(spec, Options(workers, v1::BALANCER_CONTIGUOUS), {workers},
                    DefaultMeasurements());
  };
  for (const int workers : {1, 2}) {
    // Two pieces each; of the first of two workers three, where the triangle lies with both.
    const int64_t most = workers == 1 ? 65'536 : 49'152;
    const absl::StatusOr<Plan> largest = plan(most, workers);
    ASSERT_TRUE(largest.ok()) << largest.status();
    for (int rank = 0; rank < workers; ++rank) {
      EXPECT_LT(AssignmentFor(*largest, rank).ByteSizeLong(), size_t{8} << 20);
    }
    const absl::Status refused = plan(most + 1, workers).status();
    EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(std::string(refused.message()), HasSubstr("limit 131072"));
  }
}

TEST(Planner, SaturatesMemoryInsteadOfWrappingAround) {
  const uint64_t most = std::numeric_limits<uint64_t>::max();
  EXPECT_EQ(SaturatingAdd(most, 1), most);
  EXPECT_EQ(SaturatingMultiply(uint64_t{1} << 40, uint64_t{1} << 40), most);
  EXPECT_EQ(SaturatingMultiply(1 << 20, 1 << 20), uint64_t{1} << 40);
  v1::AttentionSpec spec = CausalSpec(1 << 20);
  spec.set_q_heads(1 << 30);
  spec.set_kv_heads(1 << 30);
  spec.set_head_dim(1024);
  const Plan plan = PlanOf(spec, Options(1), 1);
  EXPECT_EQ(plan.peak_bytes[0], most);
  EXPECT_EQ(MakePlan(spec, Options(1), {1, most - 1}, DefaultMeasurements()).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

TEST(Planner, PlansAMillionTokensOverAThousandRanksAtOnce) {
  const Plan plan = PlanOf(CausalSpec(1'000'000), Options(1024), 1024);
  EXPECT_EQ(plan.ranks(), 1024);
  EXPECT_EQ(std::accumulate(plan.work.begin(), plan.work.end(), uint64_t{0}),
            uint64_t{1'000'000} * 1'000'001 / 2);
  EXPECT_LT(plan.imbalance, 1.01);
  EXPECT_FALSE(StepsFor(plan, 511).empty());
}

TEST(Planner, PlansAMillionTokensInTenThousandDocumentsAtOnce) {
  v1::AttentionSpec spec = CausalSpec(1'000'000);
  v1::Mask& mask = *spec.mutable_masks(0);
  mask.mutable_window()->set_left(63);
  mask.set_sinks(2);
  uint64_t visible = 0;
  for (int i = 0; i < 10'000; ++i) {
    const int64_t length = 50 + i % 101;
    mask.mutable_documents()->add_q_lengths(length);
    for (int64_t p = 0; p < length; ++p) visible += std::min<int64_t>(p + 1, p < 65 ? 65 : 66);
  }
  const Plan plan = PlanOf(spec, Options(0), 64);
  EXPECT_EQ(std::accumulate(plan.work.begin(), plan.work.end(), uint64_t{0}), visible);
  EXPECT_FALSE(StepsFor(plan, 0).empty());
}

TEST(Planner, CountsTheTilesOfAWindowThatDoNotFitIntoOneMessage) {
  v1::AttentionSpec spec = CausalSpec(100'000'000);
  spec.set_dtype(v1::DTYPE_F64);  // whose kernel wants windows cut
  spec.mutable_masks(0)->mutable_window()->set_left(63);
  const absl::Status refused = MakePlan(spec, Options(1), {1}, DefaultMeasurements()).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(refused.message()), HasSubstr("limit 131072"));
  spec.set_q_len(2'000'000);
  spec.set_kv_len(2'000'000);
  EXPECT_LT(AssignmentFor(PlanOf(spec, Options(1), 1), 0).ByteSizeLong(), size_t{8} << 20);
}

TEST(Planner, LooksForTheBestNumberOfManyWorkers) {
  for (const int64_t length : {1'000, 100'000, 10'000'000}) {
    EXPECT_GE(PlanOf(CausalSpec(length), Options(0), 1024).ranks(), 1);
  }
}

// What these take is told by ./dev bench --planner; here, the program's time limit bounds it.

// A thousand documents of a thousand tokens, causal.
v1::AttentionSpec PackedSpec() {
  v1::AttentionSpec spec = CausalSpec(1'000'000);
  for (int i = 0; i < 1'000; ++i) spec.mutable_masks(0)->mutable_documents()->add_q_lengths(1'000);
  return spec;
}

TEST(Planner, PlansAMillionTokensOfAThousandDocuments) {
  const v1::AttentionSpec spec = PackedSpec();
  for (const v1::Balancer balancer :
       {v1::BALANCER_CONTIGUOUS, v1::BALANCER_HEAD_TAIL, v1::BALANCER_PER_DOCUMENT,
        v1::BALANCER_PTRR, v1::BALANCER_AUTO}) {
    const Plan plan = PlanOf(spec, Options(1'024, balancer), 1'024);
    const v1::Assignment part = AssignmentFor(plan, 512);
    EXPECT_FALSE(part.steps().empty());
    EXPECT_LT(part.ByteSizeLong(), 200'000);
  }
}

TEST(Planner, PlansQueriesThatTravelOverAThousandRanks) {
  for (const v1::AttentionSpec& spec : {CausalSpec(1'000'000), PackedSpec()}) {
    for (const v1::Balancer balancer : {v1::BALANCER_CONTIGUOUS, v1::BALANCER_HEAD_TAIL}) {
      const Plan plan = PlanOf(spec, Options(1'024, balancer, v1::ROTATE_METHOD_PASS_Q), 1'024);
      EXPECT_FALSE(StepsFor(plan, 512).empty());
    }
  }
}

// PTRR's 16 blocks of each rank: 10^8 pairs of segments.
TEST(Planner, RefusesQueriesThatTravelPastMorePiecesThanItCounts) {
  const absl::Status refused =
      MakePlan(CausalSpec(1'000'000), Options(1'024, v1::BALANCER_PTRR, v1::ROTATE_METHOD_PASS_Q),
               {1'024}, DefaultMeasurements())
          .status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(refused.message()), HasSubstr("more pieces"));
}

TEST(Planner, TakesTheBalancerThatFitsTheMaskAndSaysWhy) {
  v1::AttentionSpec spec = CausalSpec(4'096);
  spec.set_q_heads(128);  // so that pairs outweigh what a tile costs beside them
  v1::Documents& documents = *spec.mutable_masks(0)->mutable_documents();
  for (int i = 0; i < 30; ++i) documents.add_q_lengths(24 + i % 5 * 4);  // 960 in all
  for (const int64_t length : {512, 480, 4'096 - 960 - 512 - 480}) documents.add_q_lengths(length);
  for (int workers = 2; workers <= 8; ++workers) {
    const Plan plan = PlanOf(spec, Options(workers), workers);
    EXPECT_LE(plan.imbalance, 1.05) << plan.reason;
    EXPECT_THAT(plan.reason, AllOf(HasSubstr("imbalance"), HasSubstr("head-tail")));
    for (const v1::Balancer named : {v1::BALANCER_CONTIGUOUS, v1::BALANCER_HEAD_TAIL,
                                     v1::BALANCER_PER_DOCUMENT, v1::BALANCER_PTRR}) {
      EXPECT_LE(plan.estimated_seconds,
                1.01 * PlanOf(spec, Options(workers, named), workers).estimated_seconds);
    }
    EXPECT_GT(plan.options.balancer(), v1::BALANCER_HEAD_TAIL) << plan.reason;
    const Plan ptrr =
        PlanOf(spec, Options(workers, v1::BALANCER_PTRR, v1::ROTATE_METHOD_ALL_GATHER), workers);
    EXPECT_LE(ptrr.imbalance, 1.05);
    EXPECT_THAT(ptrr.reason, AllOf(HasSubstr("balancer ptrr (blocks of "), HasSubstr("as asked")));
  }
  EXPECT_THAT(PlanOf(CausalSpec(65'536), Options(2), 2).reason,
              HasSubstr("ptrr not tried: could gain less than 1 %"));
}

// 4,096 positions: 30 short documents, 2 of medium length and a long one, in any order.
v1::AttentionSpec SkewedSpec(Random& random, int heads, bool causal) {
  std::vector<int64_t> documents;
  for (int i = 0; i < 30; ++i) documents.push_back(random.Between(16, 48));
  for (int i = 0; i < 2; ++i) documents.push_back(random.Between(384, 640));
  documents.push_back(4'096 - std::accumulate(documents.begin(), documents.end(), int64_t{0}));
  for (size_t i = documents.size() - 1; i > 0; --i)
    std::swap(documents[i], documents[random.Between(0, static_cast<int64_t>(i))]);
  v1::AttentionSpec spec = CausalSpec(4'096);
  spec.set_q_heads(heads);
  spec.set_kv_heads(std::max(1, heads / 4));
  spec.mutable_masks(0)->set_causal(causal);
  for (const int64_t document : documents)
    spec.mutable_masks(0)->mutable_documents()->add_q_lengths(document);
  return spec;
}

TEST(Planner, BalancesSkewedMixturesWhateverItPicks) {
  Random random(1);
  for (int i = 0; i < 8; ++i) {
    for (const bool causal : {true, false}) {
      for (const int heads : {1, 2, 8, 32}) {
        const v1::AttentionSpec spec = SkewedSpec(random, heads, causal);
        for (int workers = 2; workers <= 8; ++workers) {
          const Plan plan = PlanOf(spec, Options(workers), workers);
          EXPECT_LE(plan.imbalance, 1.05) << heads << " heads: " << plan.reason;
        }
      }
    }
  }
}

TEST(Planner, CutsTheSameWhateverWasMeasured) {
  v1::Measurements other = DefaultMeasurements();
  other.set_pairs_per_second(1e12);
  other.set_link_bytes_per_second(1e6);
  for (const v1::Balancer balancer : {v1::BALANCER_CONTIGUOUS, v1::BALANCER_HEAD_TAIL,
                                      v1::BALANCER_PER_DOCUMENT, v1::BALANCER_PTRR}) {
    const v1::AttentionSpec spec = CausalSpec(1'000);
    const absl::StatusOr<Plan> plan = MakePlan(spec, Options(3, balancer), {3}, other);
    ASSERT_TRUE(plan.ok());
    EXPECT_EQ(plan->q, PlanOf(spec, Options(3, balancer), 3).q);
  }
}

TEST(Planner, GivesNoJobMoreRanksThanAWorkerTakes) {
  v1::AttentionSpec spec = CausalSpec(100'000'000);
  const v1::AttentionOptions any_number = Options(0, v1::BALANCER_HEAD_TAIL);
  EXPECT_EQ(PlanOf(spec, any_number, 5'000).ranks(), kMaxRanks);
  const absl::StatusOr<Plan> too_large =
      MakePlan(spec, any_number, {5'000, 1'000}, DefaultMeasurements());
  EXPECT_EQ(too_large.status().code(), absl::StatusCode::kFailedPrecondition);
}

TEST(Planner, IsSwayedByMeasurements) {
  v1::Measurements slow_link = DefaultMeasurements();
  slow_link.set_link_bytes_per_second(1e5);
  const absl::StatusOr<Plan> plan =
      MakePlan(CausalSpec(4'096), Options(0), {.workers = 4}, slow_link);
  ASSERT_TRUE(plan.ok());
  EXPECT_EQ(plan->ranks(), 1);
  v1::Measurements nonsense;
  nonsense.set_pairs_per_second(-1);
  nonsense.set_link_bytes_per_second(std::numeric_limits<double>::quiet_NaN());
  nonsense.set_link_latency_seconds(-5);
  nonsense.set_rank_overhead_seconds(std::numeric_limits<double>::infinity());
  const absl::StatusOr<Plan> anyhow = MakePlan(CausalSpec(4'096), Options(0), {4}, nonsense);
  ASSERT_TRUE(anyhow.ok());
  EXPECT_GT(anyhow->estimated_seconds, 0);
}

// 64 queries over 65,536 keys.
v1::AttentionSpec FewQueries() {
  v1::AttentionSpec spec = CausalSpec(65'536);
  spec.set_q_len(64);
  spec.mutable_masks(0)->set_bottom_right(true);
  return spec;
}

TEST(Planner, LetsFewQueriesTravelInsteadOfManyKeys) {
  const Plan plan = PlanOf(FewQueries(), Options(4), 4);
  EXPECT_EQ(plan.options.rotate(), v1::ROTATE_METHOD_PASS_Q) << plan.reason;
  EXPECT_THAT(plan.reason, HasSubstr("rotate pass-q (all-to-all "));
  // 16 queries of 8 heads to 3 ranks, and 3 partials of 129 numbers for each.
  EXPECT_THAT(plan.bytes_sent, Each(3 * 16 * 8 * (128 + 129) * 4));
  const Plan ring =
      PlanOf(FewQueries(), Options(4, v1::BALANCER_AUTO, v1::ROTATE_METHOD_ALL_TO_ALL), 4);
  EXPECT_LT(plan.estimated_seconds, ring.estimated_seconds);
  EXPECT_LT(plan.peak_bytes[0], ring.peak_bytes[0]) << "nobody holds another's keys";
  EXPECT_EQ(PlanOf(CausalSpec(8'192), Options(4), 4).options.rotate(),
            v1::ROTATE_METHOD_ALL_TO_ALL);
}

// 5 steps of the ring of 4, the last of which nothing hides.
TEST(Planner, CountsTheLastPartialsAsWaitedFor) {
  v1::Measurements measurements = DefaultMeasurements();
  measurements.set_pairs_per_second(1e18);
  measurements.set_link_bytes_per_second(1e6);
  measurements.set_link_latency_seconds(0);
  measurements.set_rank_overhead_seconds(0);
  const absl::StatusOr<Plan> plan =
      MakePlan(FewQueries(), Options(4, v1::BALANCER_CONTIGUOUS, v1::ROTATE_METHOD_PASS_Q), {4},
               measurements);
  ASSERT_TRUE(plan.ok()) << plan.status();
  // Queries in steps 0, 1 and 2; partials in 2, 3 and 4.
  EXPECT_NEAR(plan->estimated_seconds, 3 * 16 * 8 * (128 + 129) * 4 / 1e6, 1e-4);
}

TEST(Planner, WeighsTheKeysThatStayWhereQueriesTravel) {
  v1::AttentionOptions options = Options(2, v1::BALANCER_HEAD_TAIL, v1::ROTATE_METHOD_PASS_Q);
  options.add_worker_weights(1);
  options.add_worker_weights(3);
  v1::AttentionSpec spec = FewQueries();
  spec.clear_masks();
  const Plan plan = PlanOf(spec, options, 2);
  EXPECT_THAT(plan.work, ElementsAre(64 * 16'384, 64 * 49'152));
  EXPECT_EQ(plan.q.RowsOf(0, 0), 32);
  EXPECT_NEAR(plan.imbalance, 1, 1e-9);
}

// However a mask and a layout cut them.
TEST(Planner, BoundsTheTilesOfPassQ) {
  for (int seed = 0; seed < 1'000; ++seed) {
    Case c = RandomCase(seed, 6, 3'000);
    c.options.set_rotate(v1::ROTATE_METHOD_PASS_Q);
    const Plan plan = PlanOf(c.spec, c.options, 6);
    const Workload workload = MakePassQWorkload(plan.q, plan.kv, plan.bands, c.spec.batch());
    for (int rank = 0; rank < plan.ranks(); ++rank) {
      int64_t tiles = 0;
      for (const v1::Step& step : StepsFor(plan, rank)) tiles += step.tiles_size();
      EXPECT_LE(tiles, workload.pieces) << c.ToString();
    }
  }
}

TEST(Planner, DescribesAPlanForPeople) {
  const Plan plan =
      PlanOf(CausalSpec(16), Options(2, v1::BALANCER_HEAD_TAIL, v1::ROTATE_METHOD_ALL_TO_ALL), 2);
  EXPECT_THAT(Describe(plan), AllOf(HasSubstr("causal; batch 1, queries 16 x 8 heads"),
                                    HasSubstr("head-tail, all-to-all, 2 workers; imbalance 1.000"),
                                    HasSubstr("[0,4) [12,16)"), HasSubstr("kv 0: 1 causal >1")));
  const Plan pass_q =
      PlanOf(CausalSpec(16), Options(2, v1::BALANCER_HEAD_TAIL, v1::ROTATE_METHOD_PASS_Q), 2);
  EXPECT_THAT(Describe(pass_q),
              AllOf(HasSubstr("q 1: 1 causal >0"), HasSubstr("partial>0"), HasSubstr("partial>1")));
}

TEST(Planner, SummarizesWhatItDecided) {
  const Plan plan = PlanOf(CausalSpec(100), Options(3), 3);
  const v1::PlanSummary summary = Summarize(plan);
  EXPECT_EQ(summary.balancer(), plan.options.balancer());
  EXPECT_EQ(summary.rotate(), plan.options.rotate());
  EXPECT_EQ(summary.workers(), 3);
  EXPECT_EQ(summary.work_size(), 3);
  EXPECT_EQ(summary.bytes_size(), 3);
  EXPECT_EQ(summary.peak_bytes_size(), 3);
  EXPECT_EQ(summary.layout().q().rows(0).ranks_size(), 3);
  EXPECT_EQ(summary.reason(), plan.reason);
}

}  // namespace
}  // namespace ringserve::test
