#include "tests/worker/attention/local_backward.h"

#include <stdexcept>
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

// As that of the forward pass, but for the pass.
Plan BackwardOf(const Plan& forward, bool d_lse) {
  v1::AttentionOptions options = forward.options;
  options.set_return_lse(false);
  absl::StatusOr<Plan> plan = MakePlan(forward.spec, options, {.workers = forward.ranks()},
                                       DefaultMeasurements(), {.backward = true, .d_lse = d_lse});
  if (!plan.ok()) throw std::runtime_error(plan.status().ToString());
  return *std::move(plan);
}

uint64_t ShardBytes(const RankAssignment& assignment) {
  uint64_t bytes = 0;
  for (const v1::TensorId tensor : assignment.Held()) bytes += assignment.BytesOf(tensor);
  return bytes;
}

}  // namespace

absl::Status BackwardOutcome::status() const {
  for (const RankOutcome& rank : ranks) {
    if (!rank.status.ok()) return rank.status;
  }
  return absl::OkStatus();
}

BackwardOutcome RunLocallyBackward(const Plan& forward, const Inputs& inputs,
                                   const Answered& answered, const LocalRingOptions& options) {
  const Plan plan = BackwardOf(forward, !answered.d_lse.empty());
  const Jobs jobs = MakeJobs(plan, inputs);
  Scatter(plan, v1::TENSOR_ID_OUT, answered.out, jobs);
  Scatter(plan, v1::TENSOR_ID_LSE, answered.lse, jobs);
  Scatter(plan, v1::TENSOR_ID_D_OUT, answered.d_out, jobs);
  if (!answered.d_lse.empty()) Scatter(plan, v1::TENSOR_ID_D_LSE, answered.d_lse, jobs);
  const auto communicators = MemoryCommunicator::Connect(plan.ranks());

  BackwardOutcome outcome;
  outcome.ranks.resize(plan.ranks());
  outcome.bytes_expected = plan.bytes_sent;
  outcome.memory_expected = plan.peak_bytes;
  const auto run = [&](int rank) {
    at::set_num_threads(options.threads);
    const c10::InferenceMode inference;
    RankAssignment assignment = jobs[rank]->assignment;
    if (options.alter) options.alter(assignment);
    RankOutcome& of_rank = outcome.ranks[rank];
    Communicator& communicator = *communicators[plan.ranks() - 1 - rank];
    RingProgress progress;
    RingOptions ring = {.scale = Scale(assignment.spec),
                        .block = options.block,
                        .lse_without_sinks = assignment.lse_without_sinks,
                        .exchange_deadline = kPatience};
    if (options.on_step) ring.on_step = [&](int step) { options.on_step(rank, step, progress); };
    const BackwardTensors tensors = MakeBackwardTensors(jobs[rank]);
    ResetMemoryCount();
    of_rank.status = RunRingBackward(
        {assignment.plan, assignment.gradients_to, assignment.gradients_from},
        MakeFormat(assignment.spec), tensors, ring, communicator, progress, of_rank.statistics);
    of_rank.most_memory_held = MostMemoryHeld();
    outcome.shard_bytes[rank] = ShardBytes(assignment);
  };
  outcome.shard_bytes.resize(plan.ranks());
  std::vector<std::thread> threads;
  for (int rank = 0; rank < plan.ranks(); ++rank) threads.emplace_back(run, rank);
  for (std::thread& thread : threads) thread.join();
  outcome.d_q = Gather(plan, v1::TENSOR_ID_D_Q, jobs);
  outcome.d_k = Gather(plan, v1::TENSOR_ID_D_K, jobs);
  outcome.d_v = Gather(plan, v1::TENSOR_ID_D_V, jobs);
  outcome.d_sinks.assign(jobs[0]->d_sinks.data, jobs[0]->d_sinks.data + jobs[0]->d_sinks.size);
  return outcome;
}

}  // namespace ringserve::test
