// The backward ring as a whole: against the oracle, what it moves and holds, and what it does when
// something goes wrong.
#include "worker/attention/backward_ring.h"

#include <algorithm>
#include <cmath>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "proto/tensor_shape.h"
#include "tests/support/backward_oracle.h"
#include "tests/support/elements.h"
#include "tests/support/random.h"
#include "tests/support/random_case.h"
#include "tests/worker/attention/counted_memory.h"
#include "tests/worker/attention/every_block.h"
#include "tests/worker/attention/local_backward.h"
#include "worker/assignment.h"

namespace ringserve::test {
namespace {

[[maybe_unused]] const bool memory_is_counted = (CountMemory(), true);

using ::testing::HasSubstr;

constexpr int kMostWorkers = 4;
constexpr int kBatches = 16, kCasesPerBatch = 100;
constexpr v1::RotateMethod kRotates[] = {v1::ROTATE_METHOD_ALL_TO_ALL,
                                         v1::ROTATE_METHOD_ALL_GATHER};

v1::DType WideType(v1::DType dtype) {
  return dtype == v1::DTYPE_F64 ? v1::DTYPE_F64 : v1::DTYPE_F32;
}

std::vector<std::byte> RandomNumbers(Random& random, size_t n, v1::DType dtype) {
  std::vector<double> values(n);
  for (double& value : values) value = random.Normal();
  return FromDoubles(values, dtype);
}

// The forward pass's own answer, and random gradients of it.
Answered Answer(const Plan& plan, const Inputs& inputs, uint64_t seed, bool with_d_lse) {
  const Outcome forward = RunLocally(plan, inputs);
  if (!forward.ok()) throw std::runtime_error(forward.status().ToString());
  Random random(seed);
  const v1::DType dtype = plan.spec.dtype();
  Answered answered = {forward.out, forward.lse, {}, {}};
  answered.d_out = RandomNumbers(random, ToDoubles(forward.out, dtype).size(), dtype);
  if (with_d_lse) {
    answered.d_lse =
        RandomNumbers(random, ToDoubles(forward.lse, WideType(dtype)).size(), WideType(dtype));
  }
  return answered;
}

Plan PlanOf(const v1::AttentionSpec& spec, int workers, v1::RotateMethod rotate) {
  v1::AttentionOptions options;
  options.set_workers(workers);
  options.set_rotate(rotate);
  options.set_balancer(v1::BALANCER_HEAD_TAIL);
  options.set_return_lse(true);
  absl::StatusOr<Plan> plan = MakePlan(spec, options, {.workers = workers}, DefaultMeasurements());
  if (!plan.ok()) throw std::runtime_error(plan.status().ToString());
  return *std::move(plan);
}

v1::AttentionSpec CausalSpec(int64_t length, v1::DType dtype = v1::DTYPE_F32) {
  v1::AttentionSpec spec;
  spec.set_batch(2);
  spec.set_q_heads(4);
  spec.set_kv_heads(2);
  spec.set_q_len(length);
  spec.set_kv_len(length);
  spec.set_head_dim(32);
  spec.set_value_dim(24);
  spec.set_dtype(dtype);
  spec.add_masks()->set_causal(true);
  return spec;
}

// Requests of every kind that are served by rings of keys.
void CheckBackward(uint64_t seed, const Block& block = FirstBlock()) {
  Case c = RandomCase(seed, kMostWorkers, 80);
  Random random(seed + 77);
  if (c.options.rotate() == v1::ROTATE_METHOD_PASS_Q || random.Chance(0.5))
    c.options.set_rotate(kRotates[seed % 2]);
  if (random.Chance(0.4)) AddRandomExtras(c);
  SCOPED_TRACE(c.ToString());
  const absl::StatusOr<Plan> plan =
      MakePlan(c.spec, c.options, {.workers = kMostWorkers}, DefaultMeasurements());
  ASSERT_TRUE(plan.ok()) << plan.status();
  if (plan->options.rotate() == v1::ROTATE_METHOD_PASS_Q) return;
  const Inputs inputs = RandomInputs(c.spec, c.seed, c.gain);
  const Answered answered = Answer(*plan, inputs, seed, random.Chance(0.5));
  const BackwardOutcome outcome = RunLocallyBackward(*plan, inputs, answered, {.block = &block});
  ASSERT_TRUE(outcome.status().ok()) << outcome.status();
  const ReferenceGradients expected =
      AttendBackward(c.spec, inputs, answered.d_out, answered.d_lse, c.options.lse_without_sinks());
  const v1::DType dtype = c.spec.dtype();
  EXPECT_EQ(CompareGradient("d_q", c.spec, expected, expected.d_q, outcome.d_q, dtype) +
                CompareGradient("d_k", c.spec, expected, expected.d_k, outcome.d_k, dtype) +
                CompareGradient("d_v", c.spec, expected, expected.d_v, outcome.d_v, dtype),
            "");
  if (c.spec.sink_logits()) {
    EXPECT_EQ(CompareGradient("d_sinks", c.spec, expected, expected.d_sinks, outcome.d_sinks,
                              v1::DTYPE_F32),
              "");
  }
  for (int rank = 0; rank < plan->ranks(); ++rank)
    EXPECT_EQ(outcome.ranks[rank].statistics.bytes_sent, outcome.bytes_expected[rank]) << rank;
}

class BackwardRing : public ::testing::TestWithParam<int> {};

TEST_P(BackwardRing, GivesWhatTheOracleGivesAndMovesWhatItsPlanSays) {
  const int first = GetParam() * kCasesPerBatch;
  for (int seed = first; seed < first + kCasesPerBatch && !HasFailure(); ++seed)
    CheckBackward(seed);
}

INSTANTIATE_TEST_SUITE_P(HundredsOfCases, BackwardRing, ::testing::Range(0, kBatches));

class BackwardRingOnDevice : public ::testing::TestWithParam<NamedBlock> {};

TEST_P(BackwardRingOnDevice, GivesWhatTheOracleGives) {
  constexpr uint64_t kFirst = 50'000, kCases = 150;
  for (uint64_t seed = kFirst; seed < kFirst + kCases && !HasFailure(); ++seed)
    CheckBackward(seed, *GetParam().block);
}

INSTANTIATE_TEST_SUITE_P(Every, BackwardRingOnDevice, ::testing::ValuesIn(EveryDeviceBlock()),
                         [](const auto& info) { return info.param.name; });

double LossOf(const v1::AttentionSpec& spec, const Inputs& inputs,
              const std::vector<double>& d_out) {
  const Reference answer = Attend(spec, inputs);
  double loss = 0;
  for (size_t i = 0; i < d_out.size(); ++i) loss += answer.out[i] * d_out[i];
  return loss;
}

TEST(BackwardOracle, AgreesWithFiniteDifferencesOfTheOracle) {
  for (uint64_t seed = 0; seed < 30; ++seed) {
    Case c = RandomCase(seed, 1, 12);
    c.spec.set_dtype(v1::DTYPE_F64);
    SCOPED_TRACE(c.ToString());
    const Inputs inputs = RandomInputs(c.spec, seed);
    Random random(seed);
    const size_t n = Attend(c.spec, inputs).out.size();
    const std::vector<std::byte> d_out = RandomNumbers(random, n, v1::DTYPE_F64);
    const ReferenceGradients g = AttendBackward(c.spec, inputs, d_out, {});
    const std::pair<std::vector<std::byte> Inputs::*, const ReferenceGradient*> of[] = {
        {&Inputs::q, &g.d_q}, {&Inputs::k, &g.d_k}, {&Inputs::v, &g.d_v}};
    for (const auto& [member, gradient] : of) {
      const std::vector<double> at = ToDoubles(inputs.*member, v1::DTYPE_F64);
      std::vector<double> more = at, less = at;
      double expected = 0, magnitude = 0;
      for (size_t i = 0; i < at.size(); ++i) {
        const double step = 1e-5 * random.Normal();
        more[i] += step;
        less[i] -= step;
        expected += 2 * step * gradient->values[i];
        magnitude += gradient->magnitudes[i];
      }
      Inputs above = inputs, below = inputs;
      above.*member = FromDoubles(more, v1::DTYPE_F64);
      below.*member = FromDoubles(less, v1::DTYPE_F64);
      const std::vector<double> weights = ToDoubles(d_out, v1::DTYPE_F64);
      EXPECT_NEAR(LossOf(c.spec, above, weights) - LossOf(c.spec, below, weights), expected,
                  1e-10 * (1 + magnitude));
    }
  }
}

// As PyTorch's: gradients are summed in the order of the ranks, however K and V came.
TEST(BackwardRingMethods, GiveTheSameBits) {
  for (const int workers : {2, 3, 4}) {
    const v1::AttentionSpec spec = CausalSpec(101);
    const Inputs inputs = RandomInputs(spec, 3);
    std::vector<BackwardOutcome> outcomes;
    for (const v1::RotateMethod rotate : kRotates) {
      const Plan plan = PlanOf(spec, workers, rotate);
      outcomes.push_back(RunLocallyBackward(plan, inputs, Answer(plan, inputs, 4, true)));
      ASSERT_TRUE(outcomes.back().status().ok()) << outcomes.back().status();
    }
    EXPECT_EQ(outcomes[0].d_q, outcomes[1].d_q);
    EXPECT_EQ(outcomes[0].d_k, outcomes[1].d_k);
    EXPECT_EQ(outcomes[0].d_v, outcomes[1].d_v);
  }
}

TEST(BackwardRingOfOne, NeedsNobody) {
  const v1::AttentionSpec spec = CausalSpec(20);
  const Inputs inputs = RandomInputs(spec, 3);
  const Plan plan = PlanOf(spec, 1, v1::ROTATE_METHOD_ALL_TO_ALL);
  const BackwardOutcome outcome = RunLocallyBackward(plan, inputs, Answer(plan, inputs, 4, false));
  ASSERT_TRUE(outcome.status().ok()) << outcome.status();
  EXPECT_EQ(outcome.ranks[0].statistics.bytes_sent, 0);
}

// The kernel's scratch is the worker's own, once for each thread: its wide rows and scores.
uint64_t ScratchBytes(const v1::AttentionSpec& spec) {
  const uint64_t queries = std::min<uint64_t>(128, spec.q_len());
  const uint64_t keys = std::min<uint64_t>(512, spec.kv_len());
  const uint64_t dims = spec.head_dim() + ValueDim(spec);
  return ((queries + keys) * dims + 2 * queries * keys) * LseElementBytes(spec.dtype());
}

TEST(BackwardRingMemory, IsNoMoreThanThePlanReserves) {
  double closest = 0;
  for (int seed = 0; seed < 120; ++seed) {
    Case c = RandomCase(seed, kMostWorkers, 700);
    if (seed % 3 == 0) AddRandomExtras(c);
    if (seed % 2 == 0) c.spec.set_sink_logits(true);
    c.options.set_lse_without_sinks(seed % 4 == 0);
    c.options.set_return_lse(true);
    c.options.set_rotate(kRotates[seed / 4 % 2]);
    SCOPED_TRACE(c.ToString());
    const absl::StatusOr<Plan> plan =
        MakePlan(c.spec, c.options, {.workers = kMostWorkers}, DefaultMeasurements());
    ASSERT_TRUE(plan.ok()) << plan.status();
    const Inputs inputs = RandomInputs(c.spec, seed);
    const BackwardOutcome outcome =
        RunLocallyBackward(*plan, inputs, Answer(*plan, inputs, seed, seed / 2 % 2 == 0));
    ASSERT_TRUE(outcome.status().ok()) << outcome.status();
    for (int rank = 0; rank < plan->ranks(); ++rank) {
      const uint64_t held = outcome.shard_bytes[rank] + outcome.ranks[rank].most_memory_held;
      const uint64_t planned = outcome.memory_expected[rank];
      EXPECT_LE(held, planned + ScratchBytes(c.spec)) << "rank " << rank;
      if (planned > 1'000'000) closest = std::max(closest, double(held) / planned);
    }
  }
  EXPECT_GT(closest, 0.6) << "the reservation is far too large, or nothing was counted";
}

// --- When something goes wrong

// Rank 1 of three does not do all of its work.
void ExpectNaNInsteadOfGradients(const LocalRingOptions& options, absl::StatusCode of_rank_1) {
  for (const v1::RotateMethod rotate : kRotates) {
    v1::AttentionSpec spec = CausalSpec(40);
    spec.set_sink_logits(true);
    const Inputs inputs = RandomInputs(spec, 3);
    const Plan plan = PlanOf(spec, 3, rotate);
    const BackwardOutcome outcome =
        RunLocallyBackward(plan, inputs, Answer(plan, inputs, 4, false), options);
    EXPECT_TRUE(outcome.ranks[0].status.ok()) << outcome.ranks[0].status;
    EXPECT_EQ(outcome.ranks[1].status.code(), of_rank_1) << outcome.ranks[1].status;
    EXPECT_TRUE(outcome.ranks[2].status.ok()) << outcome.ranks[2].status;
    for (int rank = 0; rank < 3; ++rank)
      EXPECT_EQ(outcome.ranks[rank].statistics.bytes_sent, outcome.bytes_expected[rank]);
    const auto is_nan = [](double d) { return std::isnan(d); };
    const std::vector<double> d_k = ToDoubles(outcome.d_k, v1::DTYPE_F32);
    const std::vector<double> d_sinks = ToDoubles(outcome.d_sinks, v1::DTYPE_F32);
    EXPECT_TRUE(std::any_of(d_k.begin(), d_k.end(), is_nan));
    EXPECT_TRUE(std::all_of(d_sinks.begin(), d_sinks.end(), is_nan));
  }
}

TEST(BackwardRingFailure, OfACancelledRankLeavesTheOthersTheirExchangesAndNaN) {
  LocalRingOptions options;
  options.on_step = [](int rank, int step, RingProgress& progress) {
    if (rank == 1 && step == 1) progress.cancelled = true;
  };
  ExpectNaNInsteadOfGradients(options, absl::StatusCode::kAborted);
}

TEST(BackwardRingFailure, OfATileLeavesTheOthersTheirExchangesAndNaN) {
  LocalRingOptions options;
  options.alter = [](RankAssignment& assignment) {
    if (assignment.plan.rank != 1) return;
    for (Step& step : assignment.plan.steps) {
      for (Tile& tile : step.tiles) tile.k_end += 1000;
    }
  };
  ExpectNaNInsteadOfGradients(options, absl::StatusCode::kInternal);
}

RankPlan TwoRanks() {
  RankPlan plan;
  plan.rank = 1;
  plan.members = {0, 1};
  plan.kv_rows = {{4}, {4}};
  plan.steps.resize(2);
  plan.steps[0].recvs = {{.peer = 0, .owner = 0}};
  plan.steps[1].tiles = {{.owner = 0, .q_end = 4, .k_end = 4}};
  return plan;
}

TEST(BackwardPlan, SendsGradientsInTheStepAfterTheirTiles) {
  const absl::StatusOr<BackwardPlan> plan = MakeBackwardPlan(TwoRanks(), {0});
  ASSERT_TRUE(plan.ok()) << plan.status();
  ASSERT_EQ(plan->shards.steps.size(), 3);
  EXPECT_EQ(plan->gradients_to[2], 0);
  EXPECT_EQ(plan->gradients_from[2], 0);
}

// A step in one line, whoever says it.
std::string Described(const v1::Step& step) {
  std::string line;
  for (const v1::Transfer& send : step.sends())
    absl::StrAppend(&line, " send ", send.owner(), " to ", send.peer());
  for (const v1::Transfer& recv : step.recvs())
    absl::StrAppend(&line, " take ", recv.owner(), " from ", recv.peer());
  for (const v1::Tile& tile : step.tiles())
    absl::StrAppend(&line, " tile of ", tile.owner(), " at ", tile.q_begin(), ",", tile.k_begin());
  for (const int owner : step.partial_sends()) absl::StrAppend(&line, " gradients to ", owner);
  for (const int reader : step.partial_recvs()) absl::StrAppend(&line, " gradients from ", reader);
  return line;
}
std::string Described(const RankAssignment& job, size_t t) {
  const Step& step = job.plan.steps[t];
  std::string line;
  for (const Transfer& send : step.sends)
    absl::StrAppend(&line, " send ", send.owner, " to ", send.peer);
  for (const Transfer& recv : step.recvs)
    absl::StrAppend(&line, " take ", recv.owner, " from ", recv.peer);
  for (const Tile& tile : step.tiles)
    absl::StrAppend(&line, " tile of ", tile.owner, " at ", tile.q_begin, ",", tile.k_begin);
  if (job.gradients_to[t]) absl::StrAppend(&line, " gradients to ", *job.gradients_to[t]);
  if (job.gradients_from[t]) absl::StrAppend(&line, " gradients from ", *job.gradients_from[t]);
  return line;
}

// The planner's dry run and the worker derive the backward steps from the forward ones, each for
// itself.
TEST(BackwardPlan, IsWhatThePlannerDescribes) {
  for (int seed = 0; seed < 200; ++seed) {
    Case c = RandomCase(seed, kMostWorkers, 60);
    SCOPED_TRACE(c.ToString());
    c.options.set_return_lse(false);
    c.options.set_rotate(kRotates[seed % 2]);
    const absl::StatusOr<Plan> plan = MakePlan(c.spec, c.options, {.workers = kMostWorkers},
                                               DefaultMeasurements(), {.backward = true});
    ASSERT_TRUE(plan.ok()) << plan.status();
    for (int rank = 0; rank < plan->ranks(); ++rank) {
      v1::Assignment assignment = AssignmentFor(*plan, rank);
      assignment.set_job(1);
      const absl::StatusOr<RankAssignment> worker = ParseAssignment(assignment);
      ASSERT_TRUE(worker.ok()) << worker.status();
      std::vector<v1::Step> planner = BackwardStepsFor(*plan, rank);
      ASSERT_LE(planner.size(), worker->plan.steps.size());
      planner.resize(worker->plan.steps.size());
      for (size_t t = 0; t < planner.size(); ++t) {
        EXPECT_EQ(Described(planner[t]), Described(*worker, t)) << "rank " << rank << " step " << t;
      }
    }
  }
}

TEST(BackwardPlan, RefusesQueriesThatTravel) {
  RankPlan plan = TwoRanks();
  plan.q_rows = {{4}, {4}};
  const absl::Status status = MakeBackwardPlan(plan, {}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("pass-Q"));
}

TEST(BackwardPlan, RefusesReadersThatAreNoOtherRank) {
  for (const int reader : {-1, 1, 2}) {
    EXPECT_EQ(MakeBackwardPlan(TwoRanks(), {reader}).status().code(),
              absl::StatusCode::kInvalidArgument);
  }
}

TEST(BackwardPlan, RefusesATileOfAShardThatIsNotThere) {
  RankPlan plan = TwoRanks();
  plan.steps[0].recvs.clear();
  EXPECT_EQ(MakeBackwardPlan(plan, {}).status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace ringserve::test
