// The ring loop as a whole: PyTorch's fixtures, what it moves, what it holds, and what it does when
// something goes wrong.
#include <algorithm>
#include <cmath>
#include <map>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/synchronization/mutex.h"
#include "server/plan/memory.h"
#include "tests/plan/visible_pairs.h"
#include "tests/support/elements.h"
#include "tests/support/random_case.h"
#include "tests/support/safetensors.h"
#include "tests/worker/attention/counted_memory.h"
#include "tests/worker/attention/every_block.h"
#include "tests/worker/attention/local_ring.h"
#include "worker/attention/flash_block.h"

namespace ringserve::test {
namespace {

[[maybe_unused]] const bool memory_is_counted = (CountMemory(), true);

using ::testing::HasSubstr;

static_assert(kKernelKeysLaidOut == kKeysLaidOut, "the planner reserves what the kernel takes");

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

Plan PlanOf(const v1::AttentionSpec& spec, int workers,
            v1::RotateMethod rotate = v1::ROTATE_METHOD_ALL_TO_ALL,
            v1::Balancer balancer = v1::BALANCER_HEAD_TAIL) {
  v1::AttentionOptions options;
  options.set_workers(workers);
  options.set_rotate(rotate);
  options.set_balancer(balancer);
  options.set_return_lse(true);
  absl::StatusOr<Plan> plan = MakePlan(spec, options, {.workers = workers}, DefaultMeasurements());
  if (!plan.ok()) throw std::runtime_error(plan.status().ToString());
  return *std::move(plan);
}

constexpr v1::RotateMethod kRotates[] = {v1::ROTATE_METHOD_ALL_TO_ALL, v1::ROTATE_METHOD_ALL_GATHER,
                                         v1::ROTATE_METHOD_PASS_Q};

// --- PyTorch's ring

v1::DType TypeOf(const std::string& name) {
  return name == "f32" ? v1::DTYPE_F32 : name == "bf16" ? v1::DTYPE_BF16 : v1::DTYPE_F16;
}

v1::AttentionSpec SpecOf(const nlohmann::json& c) {
  v1::AttentionSpec spec;
  spec.set_batch(c.at("B"));
  spec.set_q_heads(c.at("Hq"));
  spec.set_kv_heads(c.at("Hk"));
  spec.set_q_len(c.at("Sq"));
  spec.set_kv_len(c.at("Sk"));
  spec.set_head_dim(c.at("D"));
  spec.set_dtype(TypeOf(c.at("dtype")));
  if (!c.at("scale").is_null()) spec.set_scale(c.at("scale"));
  if (c.at("is_causal")) spec.add_masks()->set_causal(true);
  return spec;
}

std::vector<std::byte> BytesOf(const GoldenTensor& tensor) {
  const auto bytes = std::as_bytes(tensor.bytes);
  return {bytes.begin(), bytes.end()};
}

double Largest(const std::vector<double>& numbers) {
  double largest = 0;
  for (const double number : numbers) {
    if (std::isfinite(number)) largest = std::max(largest, std::abs(number));
  }
  return largest;
}

// PyTorch's own errors are given there: ours are no larger than twice that, and an absolute floor.
TEST(Fixtures, OfPyTorchsRingAreMet) {
  const SafetensorsFile file(GoldenPath("golden/ring.safetensors"));
  const nlohmann::json golden = ReadGoldenJson("golden/ring.json");
  int cases = 0;
  for (const nlohmann::json& c : golden.at("cases")) {
    const std::string name = c.at("name");
    const v1::AttentionSpec spec = SpecOf(c);
    const Inputs inputs = {BytesOf(file.at(name + "/q")), BytesOf(file.at(name + "/k")),
                           BytesOf(file.at(name + "/v"))};
    Reference reference = Attend(spec, inputs);
    const std::vector<float> ref_out = file.at(name + "/ref_out").As<float>();
    reference.out.assign(ref_out.begin(), ref_out.end());
    reference.lse = file.at(name + "/ref_lse").As<double>();
    for (const v1::RotateMethod rotate : kRotates) {
      SCOPED_TRACE(name + " " + v1::RotateMethod_Name(rotate));
      const Plan plan =
          PlanOf(spec, c.at("world_size"), rotate,
                 c.at("load_balance") ? v1::BALANCER_HEAD_TAIL : v1::BALANCER_CONTIGUOUS);
      EXPECT_EQ(Permutation(plan.q.rows[0]), c.at("order").get<std::vector<int64_t>>());
      const Outcome outcome = RunLocally(plan, inputs, {.block = &FirstBlock()});
      ASSERT_TRUE(outcome.ok()) << outcome.status();
      EXPECT_EQ(Compare(spec, reference, outcome.out, outcome.lse), "");
      const Errors ours = ErrorsOf(spec, reference, outcome.out, outcome.lse);
      // PyTorch's errors are another processor's: a few roundings more or less are its kernels'.
      // One of a score weighs as much as the score is large.
      const double roundings = std::max(5., Largest(reference.lse));
      const double floor_out = roundings * reference.largest_value * UnitRoundoff(spec.dtype());
      const double floor_lse = spec.dtype() == v1::DTYPE_F32 ? 2e-6 : 1e-4;
      EXPECT_LE(ours.out, std::max(floor_out, 2 * c.at("max_abs_error").at("out").get<double>()));
      EXPECT_LE(ours.lse, std::max(floor_lse, 2 * c.at("max_abs_error").at("lse").get<double>()));
    }
    ++cases;
  }
  EXPECT_EQ(cases, 44);
}

// K and V, unrepeated.
TEST(Fixtures, OfPyTorchsRingMoveAsManyBytesAsOurs) {
  const nlohmann::json golden = ReadGoldenJson("golden/ring.json");
  for (const nlohmann::json& c : golden.at("cases")) {
    const v1::AttentionSpec spec = SpecOf(c);
    if (c.at("is_causal") && !c.at("load_balance")) continue;  // ours skips what is hidden
    const Plan plan =
        PlanOf(spec, c.at("world_size"), v1::ROTATE_METHOD_ALL_TO_ALL,
               c.at("load_balance") ? v1::BALANCER_HEAD_TAIL : v1::BALANCER_CONTIGUOUS);
    for (int rank = 0; rank < plan.ranks(); ++rank) {
      const nlohmann::json& moved =
          c.at("comm_per_rank")[rank].at("alltoall").at("forward").at("permute_tensor");
      EXPECT_EQ(plan.bytes_sent[rank], moved.at("bytes").get<uint64_t>()) << c.at("name");
    }
  }
}

// --- What it moves and holds

TEST(Ring, MovesTheBytesOfThePlanAndDoesItsTiles) {
  for (int seed = 0; seed < 60; ++seed) {
    Case c = RandomCase(seed, 4, 60);
    const Plan plan = PlanOf(c.spec, 1 + seed % 4, kRotates[seed / 4 % 3],
                             seed % 5 % 2 ? v1::BALANCER_HEAD_TAIL : v1::BALANCER_CONTIGUOUS);
    SCOPED_TRACE(c.ToString());
    const Outcome outcome = RunLocally(plan, RandomInputs(c.spec, seed));
    ASSERT_TRUE(outcome.ok()) << outcome.status();
    uint64_t sent = 0, received = 0;
    for (int rank = 0; rank < plan.ranks(); ++rank) {
      const RankOutcome& of_rank = outcome.ranks[rank];
      EXPECT_EQ(of_rank.statistics.bytes_sent, plan.bytes_sent[rank]);
      uint64_t tiles = 0;
      for (const v1::Step& step : StepsFor(plan, rank)) tiles += step.tiles_size();
      EXPECT_EQ(of_rank.statistics.tiles, tiles);
      sent += of_rank.statistics.bytes_sent;
      received += of_rank.statistics.bytes_received;
    }
    EXPECT_EQ(sent, received);
  }
}

// Beside what the planner reserves a worker has the kernel's scratch, once for each thread.
uint64_t ScratchBytes(const v1::AttentionSpec& spec) {
  const uint64_t dim = std::max(spec.head_dim(), spec.value_dim());
  if (spec.dtype() != v1::DTYPE_F64) {
    const uint64_t group = spec.q_heads() / spec.kv_heads();
    const uint64_t rows = std::min<uint64_t>(64, (group * spec.q_len() + 15) / 16 * 16);
    return rows * (512 + dim + dim + 16) * 6;
  }
  const uint64_t queries = std::min<uint64_t>(256, spec.q_len());
  const uint64_t keys = std::min<uint64_t>(512, spec.kv_len());
  return queries * (keys + 2 + dim) * 8;
}

TEST(Ring, HoldsNoMoreMemoryThanThePlanReserves) {
  std::map<v1::RotateMethod, double> closest;
  for (int seed = 0; seed < 120; ++seed) {
    Case c = RandomCase(seed, 4, 700);
    if (seed % 3 == 0) AddRandomExtras(c);
    const v1::RotateMethod rotate =
        c.spec.has_bias() ? v1::ROTATE_METHOD_ALL_TO_ALL : kRotates[seed / 4 % 3];
    const Plan plan = PlanOf(c.spec, 1 + seed % 4, rotate,
                             seed % 5 % 2 ? v1::BALANCER_HEAD_TAIL : v1::BALANCER_CONTIGUOUS);
    SCOPED_TRACE(c.ToString());
    std::vector<uint64_t> shards(plan.ranks());
    LocalRingOptions options;
    options.alter = [&](RankAssignment& a) {
      shards[a.plan.rank] = a.q_bytes + a.k_bytes + a.v_bytes + a.bias_bytes() + a.slope_bytes +
                            a.sink_bytes + a.out_bytes + a.lse_bytes;
    };
    const Outcome outcome = RunLocally(plan, RandomInputs(c.spec, seed), options);
    ASSERT_TRUE(outcome.ok()) << outcome.status();
    for (int rank = 0; rank < plan.ranks(); ++rank) {
      const uint64_t held = shards[rank] + outcome.ranks[rank].most_memory_held;
      EXPECT_LE(held, plan.peak_bytes[rank] + ScratchBytes(plan.spec)) << "rank " << rank;
      if (plan.peak_bytes[rank] > 1'000'000) {
        double& of_method = closest[plan.options.rotate()];
        of_method = std::max(of_method, double(held) / plan.peak_bytes[rank]);
      }
    }
  }
  for (const v1::RotateMethod rotate : kRotates) {
    EXPECT_GT(closest[rotate], 0.6) << v1::RotateMethod_Name(rotate)
                                    << ": the reservation is far too large, or nothing was counted";
  }
}

// Shards that dwarf what a kernel takes: those that travel count, and no more of them.
TEST(Ring, HoldsTwoShardsThatTravel) {
  v1::AttentionSpec spec = CausalSpec(8'000, v1::DTYPE_F32);
  spec.clear_masks();
  spec.set_q_len(16);
  const Plan plan = PlanOf(spec, 4, v1::ROTATE_METHOD_ALL_TO_ALL, v1::BALANCER_CONTIGUOUS);
  const Outcome outcome = RunLocally(plan, RandomInputs(spec, 1));
  ASSERT_TRUE(outcome.ok()) << outcome.status();
  const uint64_t shard = KvShardBytes(spec, plan.kv)[0];
  for (int rank = 0; rank < 4; ++rank) {
    const uint64_t travelling = outcome.ranks[rank].most_memory_held;
    EXPECT_GE(travelling, 2 * shard) << rank;
    EXPECT_LE(shard + travelling, plan.peak_bytes[rank] + ScratchBytes(spec)) << rank;
  }
}

TEST(Ring, GivesTheSameBitsEveryTime) {
  for (const v1::DType dtype : {v1::DTYPE_F32, v1::DTYPE_BF16}) {
    for (const v1::RotateMethod rotate : kRotates) {
      const v1::AttentionSpec spec = CausalSpec(301, dtype);
      const Plan plan = PlanOf(spec, 3, rotate);
      const Inputs inputs = RandomInputs(spec, 1);
      const Outcome first = RunLocally(plan, inputs);
      for (int i = 0; i < 5; ++i) {
        const Outcome again = RunLocally(plan, inputs);
        EXPECT_EQ(again.out, first.out);
        EXPECT_EQ(again.lse, first.lse);
      }
    }
  }
}

// Both methods add the same tiles in the same order.
TEST(Ring, GivesTheSameBitsByEitherMethod) {
  const v1::AttentionSpec spec = CausalSpec(301);
  const Inputs inputs = RandomInputs(spec, 1);
  const Outcome ring = RunLocally(PlanOf(spec, 4, v1::ROTATE_METHOD_ALL_TO_ALL), inputs);
  const Outcome gather = RunLocally(PlanOf(spec, 4, v1::ROTATE_METHOD_ALL_GATHER), inputs);
  EXPECT_EQ(ring.out, gather.out);
  EXPECT_EQ(ring.lse, gather.lse);
}

// --- When something goes wrong

class Trouble : public ::testing::TestWithParam<v1::RotateMethod> {
 protected:
  const v1::AttentionSpec spec_ = CausalSpec(120);
  const Plan plan_ = PlanOf(spec_, 3, GetParam());
  const Inputs inputs_ = RandomInputs(spec_, 1);

  // Everything was exchanged, and the others' answers are those of a run without trouble; or, where
  // the one in trouble was to work on their rows (pass-Q), NaN that nobody takes for an answer.
  void ExpectTheOthersToBeRight(const Outcome& outcome, int troubled) {
    const Reference reference = Attend(spec_, inputs_);
    for (int rank = 0; rank < 3; ++rank) {
      EXPECT_EQ(outcome.ranks[rank].statistics.bytes_sent, plan_.bytes_sent[rank]) << rank;
      EXPECT_EQ(outcome.ranks[rank].status.ok(), rank != troubled) << rank;
    }
    // Rows of the one in trouble are taken from the oracle, and those that lack its partial.
    std::vector<double> out = ToDoubles(outcome.out, spec_.dtype());
    std::vector<double> lse = ToDoubles(outcome.lse, spec_.dtype());
    const std::vector<int64_t> own = PositionsOf(plan_.q.rows[0], troubled);
    for (size_t row = 0; row < lse.size(); ++row) {
      double* const numbers = &out[row * spec_.value_dim()];
      const auto is_nan = [](double number) { return std::isnan(number); };
      const bool lacks = GetParam() == v1::ROTATE_METHOD_PASS_Q && std::isnan(lse[row]) &&
                         std::all_of(numbers, numbers + spec_.value_dim(), is_nan);
      const int64_t position = static_cast<int64_t>(row) % spec_.q_len();
      if (!lacks && !std::binary_search(own.begin(), own.end(), position)) continue;
      lse[row] = reference.lse[row];
      std::copy_n(&reference.out[row * spec_.value_dim()], spec_.value_dim(), numbers);
    }
    EXPECT_EQ(
        Compare(spec_, reference, FromDoubles(out, spec_.dtype()), FromDoubles(lse, spec_.dtype())),
        "");
  }
};

TEST_P(Trouble, ACancelledRankPerformsEveryExchange) {
  for (int cancelled = 0; cancelled < 3; ++cancelled) {
    for (int at_step = 0; at_step < static_cast<int>(StepsFor(plan_, cancelled).size());
         ++at_step) {
      LocalRingOptions options;
      options.on_step = [&](int rank, int step, RingProgress& progress) {
        if (rank == cancelled && step == at_step) progress.cancelled = true;
      };
      const Outcome outcome = RunLocally(plan_, inputs_, options);
      EXPECT_EQ(outcome.ranks[cancelled].status.code(), absl::StatusCode::kAborted);
      ExpectTheOthersToBeRight(outcome, cancelled);
    }
  }
}

TEST_P(Trouble, ACancelledJobSkipsTheArithmetic) {
  LocalRingOptions options;
  options.on_step = [](int rank, int step, RingProgress& progress) { progress.cancelled = true; };
  const Outcome outcome = RunLocally(plan_, inputs_, options);
  for (int rank = 0; rank < 3; ++rank) {
    EXPECT_EQ(outcome.ranks[rank].status.code(), absl::StatusCode::kAborted);
    EXPECT_EQ(outcome.ranks[rank].statistics.tiles, 0u);
    EXPECT_EQ(outcome.ranks[rank].statistics.bytes_sent, plan_.bytes_sent[rank]);
  }
}

TEST_P(Trouble, ATileThatThrowsKeepsNobodyFromTheExchanges) {
  for (int failing = 0; failing < 3; ++failing) {
    LocalRingOptions options;
    options.alter = [&](RankAssignment& assignment) {
      if (assignment.plan.rank != failing) return;
      for (Step& step : assignment.plan.steps) {
        for (Tile& tile : step.tiles) tile.k_end += 1'000;
      }
    };
    const Outcome outcome = RunLocally(plan_, inputs_, options);
    EXPECT_EQ(outcome.ranks[failing].status.code(), absl::StatusCode::kInternal);
    EXPECT_THAT(std::string(outcome.ranks[failing].status.message()),
                HasSubstr("attention failed"));
    ExpectTheOthersToBeRight(outcome, failing);
  }
}

INSTANTIATE_TEST_SUITE_P(By, Trouble, ::testing::ValuesIn(kRotates), [](const auto& info) {
  return info.param == v1::ROTATE_METHOD_ALL_TO_ALL   ? "AllToAll"
         : info.param == v1::ROTATE_METHOD_ALL_GATHER ? "AllGather"
                                                      : "PassQ";
});

// A rank that failed knows it, its peers cannot: they must not answer with what it did not compute.
TEST(Ring, GivesNoAnswerForQueriesWhosePartialWasNotComputed) {
  v1::AttentionSpec spec = CausalSpec(60, v1::DTYPE_BF16);
  spec.clear_masks();
  const Plan plan = PlanOf(spec, 3, v1::ROTATE_METHOD_PASS_Q);
  LocalRingOptions options;
  options.alter = [](RankAssignment& assignment) {
    if (assignment.plan.rank == 1) assignment.plan.steps[2].tiles[0].k_end += 1'000;
  };
  const Outcome outcome = RunLocally(plan, RandomInputs(spec, 1), options);
  EXPECT_EQ(outcome.ranks[1].status.code(), absl::StatusCode::kInternal);
  // In step 2 rank 1 has the queries of rank 2.
  const std::vector<double> lse = ToDoubles(outcome.lse, v1::DTYPE_F32);
  const std::vector<double> out = ToDoubles(outcome.out, spec.dtype());
  for (const int64_t row : PositionsOf(plan.q.rows[0], 2)) {
    EXPECT_TRUE(std::isnan(lse[row])) << row;
    EXPECT_TRUE(std::isnan(out[row * spec.value_dim()])) << row;
  }
  for (const int64_t row : PositionsOf(plan.q.rows[0], 0)) {
    EXPECT_FALSE(std::isnan(lse[row])) << row;
  }
}

// Whichever rank enters each step first: what came is merged in the plan's order.
TEST(Ring, GivesTheSameBitsInWhateverOrderPartialsArrive) {
  const v1::AttentionSpec spec = CausalSpec(150);
  const Plan plan = PlanOf(spec, 3, v1::ROTATE_METHOD_PASS_Q, v1::BALANCER_CONTIGUOUS);
  const Inputs inputs = RandomInputs(spec, 1);
  const Outcome first = RunLocally(plan, inputs);
  ASSERT_TRUE(first.ok()) << first.status();
  std::vector<int> order = {0, 1, 2};
  do {
    absl::Mutex mu;
    std::map<int, int> entered;  // by step: how many ranks
    LocalRingOptions options;
    options.on_step = [&](int rank, int step, RingProgress&) {
      const int before = std::find(order.begin(), order.end(), rank) - order.begin();
      const auto turn = [&] { return entered[step] >= before; };
      absl::MutexLock lock(&mu);
      mu.Await(absl::Condition(&turn));
      ++entered[step];
    };
    const Outcome outcome = RunLocally(plan, inputs, options);
    ASSERT_TRUE(outcome.ok()) << outcome.status();
    EXPECT_EQ(outcome.out, first.out);
    EXPECT_EQ(outcome.lse, first.lse);
  } while (std::next_permutation(order.begin(), order.end()));
}

// A shard of another size than the plan's is a bug: the communicator ends, nobody waits.
TEST(Ring, EndsForAllWhereShardsAreNotThePlans) {
  const v1::AttentionSpec spec = CausalSpec(90);
  LocalRingOptions options;
  options.alter = [](RankAssignment& assignment) {
    if (assignment.plan.rank == 1) assignment.plan.kv_rows[0][0] += 1;
  };
  const Outcome outcome = RunLocally(PlanOf(spec, 3), RandomInputs(spec, 1), options);
  for (const RankOutcome& rank : outcome.ranks) {
    EXPECT_EQ(rank.status.code(), absl::StatusCode::kInternal) << rank.status;
  }
}

TEST(Ring, TellsOfEveryStep) {
  const v1::AttentionSpec spec = CausalSpec(90);
  const Plan plan = PlanOf(spec, 3);
  std::vector<std::vector<int>> steps(3);
  LocalRingOptions options;
  options.on_step = [&](int rank, int step, RingProgress&) { steps[rank].push_back(step); };
  ASSERT_TRUE(RunLocally(plan, RandomInputs(spec, 1), options).ok());
  for (const std::vector<int>& of_rank : steps) EXPECT_EQ(of_rank, (std::vector<int>{0, 1, 2}));
}

// Infinite keys that a rank alone holds weigh nothing, as in an unsharded call.
TEST(Ring, TakesScoresOfMinusInfinity) {
  for (const v1::DType dtype : {v1::DTYPE_F32, v1::DTYPE_F64}) {
    v1::AttentionSpec spec = CausalSpec(64, dtype);
    spec.clear_masks();
    Inputs inputs = RandomInputs(spec, 1);
    std::vector<double> q = ToDoubles(inputs.q, dtype), k = ToDoubles(inputs.k, dtype);
    for (double& number : q) number = std::abs(number);
    for (size_t i = 0; i < k.size(); ++i) {
      if (i / spec.head_dim() % spec.kv_len() < 40) k[i] = -INFINITY;
    }
    inputs.q = FromDoubles(q, dtype);
    inputs.k = FromDoubles(k, dtype);
    Reference reference = Attend(spec, inputs);
    reference.largest_score = 100;
    for (int run = 0; run < 12; ++run) {
      const Outcome outcome = RunLocally(PlanOf(spec, 1 + run % 4, kRotates[run / 4]), inputs);
      ASSERT_TRUE(outcome.ok()) << outcome.status();
      EXPECT_EQ(Compare(spec, reference, outcome.out, outcome.lse), "") << run;
    }
  }
}

// What is not a number is never taken for one.
TEST(Ring, PassesOnNaN) {
  v1::AttentionSpec spec = CausalSpec(64);
  spec.clear_masks();
  for (std::vector<std::byte> Inputs::*tensor : {&Inputs::q, &Inputs::k, &Inputs::v}) {
    Inputs inputs = RandomInputs(spec, 1);
    std::vector<double> values = ToDoubles(inputs.*tensor, spec.dtype());
    for (double& value : values) value = std::nan("");
    inputs.*tensor = FromDoubles(values, spec.dtype());
    for (const v1::RotateMethod rotate : kRotates) {
      const Outcome outcome = RunLocally(PlanOf(spec, 3, rotate), inputs);
      ASSERT_TRUE(outcome.ok()) << outcome.status();
      for (const double value : ToDoubles(outcome.out, spec.dtype()))
        ASSERT_TRUE(std::isnan(value)) << rotate;
    }
  }
}

}  // namespace
}  // namespace ringserve::test
