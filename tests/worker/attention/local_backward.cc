#include "tests/worker/attention/local_backward.h"

#include <cassert>
#include <set>
#include <thread>

#include <ATen/Parallel.h>
#include <c10/core/InferenceMode.h>

#include "proto/tensor_shape.h"
#include "tests/support/memory_communicator.h"
#include "tests/support/wait.h"
#include "tests/worker/attention/counted_memory.h"
#include "tests/worker/attention/local_jobs.h"
#include "worker/attention/backward_ring.h"
#include "worker/rank_tensors.h"

namespace ringserve::test {
namespace {

// By owner of keys: the other ranks that have a tile of them.
std::vector<std::vector<int>> ReadersOf(const Jobs& jobs) {
  std::vector<std::set<int>> readers(jobs.size());
  for (const std::shared_ptr<RankJob>& job : jobs) {
    const RankPlan& plan = job->assignment.plan;
    for (const Step& step : plan.steps) {
      for (const Tile& tile : step.tiles) {
        if (tile.owner != plan.rank) readers[tile.owner].insert(plan.rank);
      }
    }
  }
  std::vector<std::vector<int>> lists;
  for (const std::set<int>& of : readers) lists.emplace_back(of.begin(), of.end());
  return lists;
}

uint64_t BytesOfGradients(const Plan& plan, int rank, const BackwardPlan& backward) {
  const v1::AttentionSpec& spec = plan.spec;
  const uint64_t wide = LseElementBytes(spec.dtype());
  uint64_t numbers = 0;
  for (const std::optional<int>& owner : backward.gradients_to) {
    if (!owner) continue;
    for (int64_t b = 0; b < spec.batch(); ++b)
      numbers += plan.kv.RowsOf(*owner, b) * spec.kv_heads() * (spec.head_dim() + ValueDim(spec));
  }
  if (spec.sink_logits() && rank != 0) numbers += spec.q_heads();
  return numbers * wide;
}

// Gradients lie in the memory of a second job, where that job has the tensors they are of.
BackwardTensors MakeBackwardTensors(const std::shared_ptr<RankJob>& job,
                                    const std::shared_ptr<RankJob>& gradients, bool has_d_lse) {
  const RankTensors given = MakeTensors(job), of = MakeTensors(gradients);
  BackwardTensors tensors = {.q = given.q,
                             .kv = given.kv,
                             .out = given.out,
                             .lse = given.lse,
                             .d_out = of.out,
                             .d_lse = has_d_lse ? of.lse : std::vector<at::Tensor>{},
                             .bias = given.bias,
                             .alibi_slopes = given.alibi_slopes,
                             .sink_logits = given.sink_logits,
                             .d_q = of.q,
                             .d_kv = of.kv,
                             .d_sink_logits = {}};
  if (given.sink_logits.defined()) {
    tensors.d_sink_logits = at::empty({job->assignment.spec.q_heads()}, given.lse[0].scalar_type());
  }
  return tensors;
}

}  // namespace

absl::Status BackwardOutcome::status() const {
  for (const RankOutcome& rank : ranks) {
    if (!rank.status.ok()) return rank.status;
  }
  return absl::OkStatus();
}

BackwardOutcome RunLocallyBackward(const Plan& plan, const Inputs& inputs, const Answered& answered,
                                   const LocalRingOptions& options) {
  const Jobs jobs = MakeJobs(plan, inputs), gradients = MakeJobs(plan);
  Scatter(plan, v1::TENSOR_ID_OUT, answered.out, jobs);
  Scatter(plan, v1::TENSOR_ID_LSE, answered.lse, jobs);
  Scatter(plan, v1::TENSOR_ID_OUT, answered.d_out, gradients);
  if (!answered.d_lse.empty()) Scatter(plan, v1::TENSOR_ID_LSE, answered.d_lse, gradients);
  const std::vector<std::vector<int>> readers = ReadersOf(jobs);
  const auto communicators = MemoryCommunicator::Connect(plan.ranks());

  BackwardOutcome outcome;
  outcome.ranks.resize(plan.ranks());
  outcome.bytes_expected.resize(plan.ranks());
  const auto run = [&](int rank) {
    at::set_num_threads(options.threads);
    const c10::InferenceMode inference;
    RankAssignment assignment = jobs[rank]->assignment;
    if (options.alter) options.alter(assignment);
    RankOutcome& of_rank = outcome.ranks[rank];
    const absl::StatusOr<BackwardPlan> backward = MakeBackwardPlan(assignment.plan, readers[rank]);
    Communicator& communicator = *communicators[plan.ranks() - 1 - rank];
    if (!backward.ok()) {
      of_rank.status = backward.status();
      communicator.Abort(backward.status());
      return;
    }
    outcome.bytes_expected[rank] = plan.bytes_sent[rank] + BytesOfGradients(plan, rank, *backward);
    RingProgress progress;
    RingOptions ring = {.scale = Scale(assignment.spec),
                        .lse_without_sinks = assignment.lse_without_sinks,
                        .exchange_deadline = kPatience};
    if (options.on_step) ring.on_step = [&](int step) { options.on_step(rank, step, progress); };
    const BackwardTensors tensors =
        MakeBackwardTensors(jobs[rank], gradients[rank], !answered.d_lse.empty());
    ResetMemoryCount();
    of_rank.status = RunRingBackward(*backward, MakeFormat(assignment.spec), tensors, ring,
                                     communicator, progress, of_rank.statistics);
    of_rank.most_memory_held = MostMemoryHeld();
    if (rank == 0 && tensors.d_sink_logits.defined()) {
      const at::Tensor sinks = tensors.d_sink_logits.to(at::kDouble);
      outcome.d_sinks.assign(sinks.const_data_ptr<double>(),
                             sinks.const_data_ptr<double>() + sinks.numel());
    }
  };
  std::vector<std::thread> threads;
  for (int rank = 0; rank < plan.ranks(); ++rank) threads.emplace_back(run, rank);
  for (std::thread& thread : threads) thread.join();
  outcome.d_q = Gather(plan, v1::TENSOR_ID_Q, gradients);
  outcome.d_k = Gather(plan, v1::TENSOR_ID_K, gradients);
  outcome.d_v = Gather(plan, v1::TENSOR_ID_V, gradients);
  return outcome;
}

}  // namespace ringserve::test
