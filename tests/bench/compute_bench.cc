// ringserve_compute_bench: what a plan's busiest rank computes, measured; ./dev bench --area and
// --auto run it. The ranks are threads of this process, of one thread each, that carry the plan out
// as workers do. Seconds are the processor time of the rank that took most, the best of some turns:
// who else uses the machine is not the plan's fault.
//
//   area   do a window and documents take what their visible area says, against causal?
//   auto   does `auto` take the cheapest, of 12 masks, of all balancers and rotate methods?
#include <algorithm>
#include <cstdio>
#include <limits>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <CLI/CLI.hpp>

#include "server/plan/names.h"
#include "server/plan/plan.h"
#include "tests/bench/mask_zoo.h"
#include "tests/support/elements.h"
#include "tests/worker/attention/local_ring.h"

namespace ringserve::bench {
namespace {

struct Setting {
  int workers = 2;
  int64_t length = 0;  // 0: as the measurement says
  v1::DType dtype = v1::DTYPE_F32;
  int turns = 0;  // 0: as the measurement says
};

v1::AttentionSpec SpecOf(const NamedMask& mask, v1::DType dtype) {
  v1::AttentionSpec spec;
  spec.set_batch(1);
  spec.set_q_heads(8);
  spec.set_kv_heads(2);
  spec.set_q_len(mask.q_len);
  spec.set_kv_len(mask.kv_len);
  spec.set_head_dim(128);
  spec.set_dtype(dtype);
  *spec.add_masks() = mask.mask;
  return spec;
}

std::vector<std::byte> RandomTensor(int64_t elements, v1::DType dtype) {
  static std::mt19937_64 random(1);
  std::normal_distribution<double> normal;
  std::vector<double> some(1 << 16);
  for (double& value : some) value = normal(random);
  std::vector<double> values(elements);
  for (int64_t i = 0; i < elements; ++i) values[i] = some[i * 31 % 65'521];
  return test::FromDoubles(values, dtype);
}

test::Inputs InputsOf(const v1::AttentionSpec& spec) {
  test::Inputs inputs;
  inputs.q = RandomTensor(spec.q_heads() * spec.q_len() * spec.head_dim(), spec.dtype());
  inputs.k = RandomTensor(spec.kv_heads() * spec.kv_len() * spec.head_dim(), spec.dtype());
  inputs.v = RandomTensor(spec.kv_heads() * spec.kv_len() * spec.head_dim(), spec.dtype());
  return inputs;
}

// A way to carry a request out, and what it was seen to take.
struct Choice {
  Plan plan;
  double seconds = std::numeric_limits<double>::infinity();
  int64_t tiles = 0;

  std::string Name() const {
    return BalancerName(plan.options.balancer()) + ", " + RotateName(plan.options.rotate());
  }
  uint64_t area() const { return std::accumulate(plan.work.begin(), plan.work.end(), uint64_t{0}); }
};

void Run(const test::Inputs& inputs, Choice& choice) {
  const test::Outcome outcome = test::RunLocally(choice.plan, inputs);
  if (!outcome.ok()) throw std::runtime_error(outcome.status().ToString());
  double slowest = 0;
  choice.tiles = 0;
  for (const test::RankOutcome& rank : outcome.ranks) {
    slowest = std::max(slowest, rank.processor_seconds);
    choice.tiles = std::max<int64_t>(choice.tiles, rank.statistics.tiles);
  }
  choice.seconds = std::min(choice.seconds, slowest);
}

absl::StatusOr<Plan> PlanOf(const v1::AttentionSpec& spec, int workers, v1::Balancer balancer,
                            v1::RotateMethod rotate) {
  v1::AttentionOptions options;
  options.set_workers(workers);
  options.set_balancer(balancer);
  options.set_rotate(rotate);
  return MakePlan(spec, options, {workers}, DefaultMeasurements());
}

int Area(const Setting& setting) {
  const int64_t length = setting.length > 0 ? setting.length : 32'768;
  std::vector<std::pair<std::string, Choice>> measured;
  std::vector<test::Inputs> inputs;
  for (const NamedMask& mask : AreaMasks(length)) {
    const v1::AttentionSpec spec = SpecOf(mask, setting.dtype);
    absl::StatusOr<Plan> plan =
        PlanOf(spec, setting.workers, v1::BALANCER_AUTO, v1::ROTATE_METHOD_AUTO);
    if (!plan.ok()) throw std::runtime_error(plan.status().ToString());
    inputs.push_back(InputsOf(spec));
    measured.push_back({mask.name, {*std::move(plan)}});
  }
  for (int turn = 0; turn < (setting.turns > 0 ? setting.turns : 3); ++turn) {
    // The others take so little that more turns are a better use of the time.
    for (size_t i = 0; i < measured.size(); ++i) {
      for (int again = i == 0 ? 1 : 3; again > 0; --again) Run(inputs[i], measured[i].second);
    }
  }
  std::printf("S = %lld, %d workers of one thread, %s, heads 8:2, dim 128: the slowest rank\n\n",
              static_cast<long long>(length), setting.workers,
              v1::DType_Name(setting.dtype).c_str());
  std::printf("%-22s %9s %9s %9s %9s %6s  %s\n", "mask", "of causal", "seconds", "allowed",
              "x area", "tiles", "what ran");
  const Choice& causal = measured[0].second;
  bool kept = true;
  for (const auto& [name, choice] : measured) {
    const double part = static_cast<double>(choice.area()) / static_cast<double>(causal.area());
    const double allowed = 1.3 * part * causal.seconds + 5e-3;
    kept &= &choice == &causal || choice.seconds <= allowed;
    std::printf("%-22s %9.4f %9.4f %9.4f %9.2f %6lld  %s\n", name.c_str(), part, choice.seconds,
                allowed, choice.seconds / (part * causal.seconds),
                static_cast<long long>(choice.tiles), choice.Name().c_str());
  }
  std::printf("\nallowed: 1.3 x part of the causal area x causal seconds + 5 ms: %s\n",
              kept ? "kept" : "NOT KEPT");
  return kept ? 0 : 1;
}

// Rotate methods that move K and V compute the same.
bool ComputeTheSame(const Plan& a, const Plan& b) {
  const auto passes_q = [](const Plan& plan) {
    return plan.options.rotate() == v1::ROTATE_METHOD_PASS_Q;
  };
  return a.q == b.q && a.kv == b.kv && passes_q(a) == passes_q(b);
}

// Every fixed choice whose tiles are not those of one before.
std::vector<Choice> FixedChoices(const v1::AttentionSpec& spec, int workers) {
  std::vector<Choice> choices;
  for (const v1::Balancer balancer : {v1::BALANCER_CONTIGUOUS, v1::BALANCER_HEAD_TAIL,
                                      v1::BALANCER_PER_DOCUMENT, v1::BALANCER_PTRR}) {
    for (const v1::RotateMethod rotate :
         {v1::ROTATE_METHOD_ALL_TO_ALL, v1::ROTATE_METHOD_ALL_GATHER, v1::ROTATE_METHOD_PASS_Q}) {
      absl::StatusOr<Plan> plan = PlanOf(spec, workers, balancer, rotate);
      if (!plan.ok()) continue;
      const bool known = std::any_of(choices.begin(), choices.end(), [&](const Choice& other) {
        return ComputeTheSame(other.plan, *plan);
      });
      if (!known) choices.push_back({*std::move(plan)});
    }
  }
  return choices;
}

// Measures `choices` in `turns`; 0: 12, and more of what takes little, for noise is a larger part
// of it. Those that are far behind after some turns are out, all but `taken`: more turns of the
// rest are a better use of the time. Who starts a turn finds the processor in another state: each
// does.
void Race(const test::Inputs& inputs, int turns, size_t taken, std::vector<Choice>& choices) {
  constexpr int kTurnsOfAll = 5;
  constexpr double kFarBehind = 1.3;
  const bool as_it_takes = turns == 0;
  if (as_it_takes) turns = 12;
  std::vector<size_t> runners(choices.size());
  std::iota(runners.begin(), runners.end(), 0);
  for (int turn = 0; turn < turns; ++turn) {
    for (size_t i = 0; i < runners.size(); ++i)
      Run(inputs, choices[runners[(turn + i) % runners.size()]]);
    if (turn == 0 && as_it_takes)
      turns = std::clamp(static_cast<int>(6 / choices[taken].seconds), turns, 40);
    if (turn + 1 < kTurnsOfAll) continue;
    double best = std::numeric_limits<double>::infinity();
    for (const size_t runner : runners) best = std::min(best, choices[runner].seconds);
    std::erase_if(runners, [&](size_t runner) {
      return runner != taken && choices[runner].seconds > kFarBehind * best;
    });
  }
}

int Auto(const Setting& setting, const std::string& only, bool verbose) {
  const int64_t length = setting.length > 0 ? setting.length : 8'192;
  std::printf("S = %lld, %d workers of one thread, %s, heads 8:2, dim 128: the slowest rank\n\n",
              static_cast<long long>(length), setting.workers,
              v1::DType_Name(setting.dtype).c_str());
  std::printf("%-30s %9s %9s %6s  %-28s %s\n", "mask", "auto, s", "best, s", "ratio", "auto took",
              "best fixed choice");
  bool kept = true;
  for (const NamedMask& mask : TwelveMasks(length)) {
    if (mask.name.find(only) == std::string::npos) continue;
    const v1::AttentionSpec spec = SpecOf(mask, setting.dtype);
    const test::Inputs inputs = InputsOf(spec);
    absl::StatusOr<Plan> plan =
        PlanOf(spec, setting.workers, v1::BALANCER_AUTO, v1::ROTATE_METHOD_AUTO);
    if (!plan.ok()) throw std::runtime_error(plan.status().ToString());
    std::vector<Choice> choices = FixedChoices(spec, setting.workers);
    // What `auto` takes is often one of them: then it is measured once.
    const auto same = std::find_if(choices.begin(), choices.end(), [&](const Choice& choice) {
      return ComputeTheSame(choice.plan, *plan);
    });
    const size_t fixed = choices.size(), taken = same - choices.begin();
    if (taken == fixed) choices.push_back({*plan});
    Race(inputs, setting.turns, taken, choices);
    const Choice& chosen = choices[taken];
    const Choice& best =
        *std::min_element(choices.begin(), choices.begin() + static_cast<int64_t>(fixed),
                          [](const Choice& a, const Choice& b) { return a.seconds < b.seconds; });
    const double ratio = chosen.seconds / best.seconds;
    kept &= ratio <= 1.05;
    std::printf("%-30s %9.4f %9.4f %6.3f  %-28s %s\n", mask.name.c_str(), chosen.seconds,
                best.seconds, ratio, Choice{*plan}.Name().c_str(), best.Name().c_str());
    for (const Choice& choice : choices) {
      if (!verbose) break;
      std::printf("    %-26s %9.4f estimated %9.4f, imbalance %.3f, %lld tiles\n",
                  choice.Name().c_str(), choice.seconds, choice.plan.estimated_seconds,
                  choice.plan.imbalance, static_cast<long long>(choice.tiles));
    }
    std::fflush(stdout);
  }
  std::printf("\nno ratio above 1.05: %s\n", kept ? "kept" : "NOT KEPT");
  return kept ? 0 : 1;
}

int Main(int argc, char** argv) {
  Setting setting;
  std::string dtype = "F32", only;
  bool verbose = false;
  CLI::App app("Measures what plans take to compute", "ringserve_compute_bench");
  app.add_option("--workers", setting.workers);
  app.add_option("--length", setting.length);
  app.add_option("--dtype", dtype, "F32, F64, BF16 or F16");
  app.add_option("--turns", setting.turns, "else as many as the measurement wants")
      ->check(CLI::Range(1, 1'000));
  CLI::App* const area = app.add_subcommand("area");
  CLI::App* const automatic = app.add_subcommand("auto");
  automatic->add_option("--mask", only, "only masks whose name has this");
  automatic->add_flag("--verbose", verbose, "every choice's seconds");
  app.require_subcommand(1);
  CLI11_PARSE(app, argc, argv);
  if (!v1::DType_Parse("DTYPE_" + dtype, &setting.dtype)) throw std::runtime_error("no such dtype");
  return *area ? Area(setting) : Auto(setting, only, verbose);
}

}  // namespace
}  // namespace ringserve::bench

int main(int argc, char** argv) { return ringserve::bench::Main(argc, argv); }
