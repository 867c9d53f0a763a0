// ringserve_plan_bench: how long the planner takes. 1M tokens over 1,024 ranks, in 1,000 documents
// and in one, causal and full: MakePlan and one rank's assignment for every balancer. Prints a
// table; ./dev bench --planner runs it. With an
// argument: this balancer alone.
#include <algorithm>
#include <cstdio>
#include <ctime>
#include <limits>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "server/plan/names.h"
#include "server/plan/plan.h"

namespace ringserve::bench {
namespace {

constexpr int64_t kTokens = 1'000'000;
constexpr int kRanks = 1'024;
constexpr int kTurns = 5;

v1::AttentionSpec SpecOf(const std::vector<int64_t>& documents, bool causal) {
  v1::AttentionSpec spec;
  spec.set_batch(1);
  spec.set_q_heads(8);
  spec.set_kv_heads(2);
  spec.set_q_len(kTokens);
  spec.set_kv_len(kTokens);
  spec.set_head_dim(128);
  spec.set_dtype(v1::DTYPE_F32);
  v1::Mask& mask = *spec.add_masks();
  mask.set_causal(causal);
  for (const int64_t length : documents) mask.mutable_documents()->add_q_lengths(length);
  return spec;
}

// Lengths from 1 to 2,000 in an order without a pattern; they sum to kTokens.
std::vector<int64_t> UnevenDocuments() {
  std::vector<int64_t> documents;
  for (int64_t i = 0; i < 500; ++i) {
    const int64_t length = 1 + i * 7'919 % 1'999;
    documents.push_back(length);
    documents.push_back(2'000 - length);
  }
  return documents;
}

// Processor time: the planner is one thread, and others who use the machine are not its fault.
double Milliseconds(std::clock_t begin) {
  return 1e3 * static_cast<double>(std::clock() - begin) / CLOCKS_PER_SEC;
}

void Measure(const char* name, const v1::AttentionSpec& spec, v1::Balancer balancer) {
  v1::AttentionOptions options;
  options.set_workers(kRanks);
  options.set_balancer(balancer);
  double plan_ms = std::numeric_limits<double>::infinity(), part_ms = plan_ms;
  size_t bytes = 0;
  int tiles = 0;
  std::string chosen;
  for (int turn = 0; turn < kTurns; ++turn) {
    std::clock_t begin = std::clock();
    const absl::StatusOr<Plan> plan = MakePlan(spec, options, {kRanks}, DefaultMeasurements());
    const double ms = Milliseconds(begin);
    if (!plan.ok()) {
      std::printf("%-33s %-12s  %s\n", name, BalancerName(balancer).c_str(),
                  plan.status().ToString().c_str());
      return;
    }
    plan_ms = std::min(plan_ms, ms);
    begin = std::clock();
    const v1::Assignment part = AssignmentFor(*plan, kRanks / 2);
    part_ms = std::min(part_ms, Milliseconds(begin));
    bytes = part.ByteSizeLong();
    tiles = std::accumulate(part.steps().begin(), part.steps().end(), 0,
                            [](int n, const v1::Step& step) { return n + step.tiles_size(); });
    chosen = BalancerName(plan->options.balancer()) + ", " + RotateName(plan->options.rotate());
  }
  std::printf("%-33s %-12s %8.1f %8.1f %8.1f %8d %9.1f  %s\n", name, BalancerName(balancer).c_str(),
              plan_ms + part_ms, plan_ms, part_ms, tiles, static_cast<double>(bytes) / 1e3,
              chosen.c_str());
}

void Main(const std::string& only) {
  const std::vector<int64_t> even(1'000, 1'000), one = {kTokens};
  const std::vector<std::pair<std::string, std::vector<int64_t>>> shapes = {
      {"1,000 documents of 1,000", even},
      {"1,000 of 1 to 2,000", UnevenDocuments()},
      {"one document", one}};
  std::printf("%lld tokens over %d ranks: milliseconds of processor time, the best of %d turns\n\n",
              static_cast<long long>(kTokens), kRanks, kTurns);
  std::printf("%-33s %-12s %8s %8s %8s %8s %9s  %s\n", "", "balancer", "all", "plan", "a part",
              "tiles", "kB of it", "what ran");
  for (const auto& [name, documents] : shapes) {
    for (const bool causal : {true, false}) {
      const v1::AttentionSpec spec = SpecOf(documents, causal);
      const std::string title = name + (causal ? ", causal" : ", full");
      for (const v1::Balancer balancer :
           {v1::BALANCER_CONTIGUOUS, v1::BALANCER_HEAD_TAIL, v1::BALANCER_PER_DOCUMENT,
            v1::BALANCER_PTRR, v1::BALANCER_AUTO}) {
        if (only.empty() || only == BalancerName(balancer)) Measure(title.c_str(), spec, balancer);
      }
    }
  }
}

}  // namespace
}  // namespace ringserve::bench

int main(int argc, char** argv) {
  ringserve::bench::Main(argc > 1 ? argv[1] : "");
  return 0;
}
