#include "tests/worker/attention/local_ring.h"

#include <cassert>
#include <chrono>
#include <cstring>
#include <ctime>
#include <thread>

#include <ATen/Parallel.h>
#include <c10/core/InferenceMode.h>

#include "proto/tensor_shape.h"
#include "server/plan/shard_map.h"
#include "tests/support/memory_communicator.h"
#include "tests/support/wait.h"
#include "tests/worker/attention/counted_memory.h"
#include "worker/rank_job.h"
#include "worker/rank_tensors.h"

namespace ringserve::test {
namespace {

bool IsOfQueries(v1::TensorId tensor) {
  return tensor != v1::TENSOR_ID_K && tensor != v1::TENSOR_ID_V;
}

ShardMap MapOf(const Plan& plan, v1::TensorId tensor) {
  return ShardMap(ShapeOf(tensor, plan.spec), IsOfQueries(tensor) ? plan.q : plan.kv);
}

void Scatter(const Plan& plan, v1::TensorId tensor, const std::vector<std::byte>& bytes,
             const std::vector<std::shared_ptr<RankJob>>& jobs) {
  assert(bytes.size() == ShapeOf(tensor, plan.spec).bytes());
  for (const ByteRun& run : MapOf(plan, tensor).FromTensor(0, bytes.size())) {
    std::memcpy(jobs[run.rank]->Data(tensor) + run.shard_offset, &bytes[run.tensor_offset],
                run.size);
  }
}

// As the coordinator's router and the worker see it: what all ranks have, and a bias that batch
// rows with layouts of their own share.
void ScatterExtras(const Plan& plan, const Inputs& inputs,
                   const std::vector<std::shared_ptr<RankJob>>& jobs) {
  for (const std::shared_ptr<RankJob>& job : jobs) {
    if (!inputs.alibi_slopes.empty())
      std::memcpy(job->slopes.data(), inputs.alibi_slopes.data(), inputs.alibi_slopes.size());
    if (!inputs.sink_logits.empty())
      std::memcpy(job->sinks.data(), inputs.sink_logits.data(), inputs.sink_logits.size());
  }
  if (!plan.spec.has_bias()) return;
  if (plan.q.shared() || plan.spec.bias().per_batch()) {
    Scatter(plan, v1::TENSOR_ID_BIAS, inputs.bias, jobs);
    return;
  }
  const TensorShape shape = ShapeOf(v1::TENSOR_ID_BIAS, plan.spec);
  std::vector<uint64_t> begins(plan.ranks());
  for (const RowLayout& row : plan.q.rows) {
    const ShardMap map(shape, SequenceLayout{{row}});
    for (const ByteRun& run : map.FromTensor(0, inputs.bias.size())) {
      std::memcpy(jobs[run.rank]->bias.data() + begins[run.rank] + run.shard_offset,
                  &inputs.bias[run.tensor_offset], run.size);
    }
    for (int rank = 0; rank < plan.ranks(); ++rank) begins[rank] += map.ShardBytes(rank);
  }
}

std::vector<std::byte> Gather(const Plan& plan, v1::TensorId tensor,
                              const std::vector<std::shared_ptr<RankJob>>& jobs) {
  std::vector<std::byte> bytes(ShapeOf(tensor, plan.spec).bytes());
  const ShardMap map = MapOf(plan, tensor);
  for (int rank = 0; rank < plan.ranks(); ++rank) {
    for (const ByteRun& run : map.FromShard(rank, 0, map.ShardBytes(rank))) {
      std::memcpy(&bytes[run.tensor_offset], jobs[rank]->Data(tensor) + run.shard_offset, run.size);
    }
  }
  return bytes;
}

// As the coordinator sends it and the worker takes it. Ranks are bound to members in reverse, so
// that mistaking one for the other shows.
std::shared_ptr<RankJob> MakeJob(const Plan& plan, int rank) {
  v1::Assignment assignment;
  v1::Assignment sent = AssignmentFor(plan, rank);
  sent.set_job(1);
  assert(assignment.ParseFromString(sent.SerializeAsString()));
  absl::StatusOr<RankAssignment> parsed = ParseAssignment(assignment);
  if (!parsed.ok()) throw std::runtime_error(parsed.status().ToString());
  v1::Start start;
  for (int r = 0; r < plan.ranks(); ++r) start.add_members(plan.ranks() - 1 - r);
  const absl::Status bound =
      BindMembers(start, plan.ranks() - 1 - rank, plan.ranks(), parsed->plan);
  if (!bound.ok()) throw std::runtime_error(bound.ToString());
  auto job = std::make_shared<RankJob>(*std::move(parsed));
  if (const absl::Status status = job->Allocate(); !status.ok()) {
    throw std::runtime_error(status.ToString());
  }
  return job;
}

double ThreadSeconds() {
  timespec now = {};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

void RunRank(const std::shared_ptr<RankJob>& job, const LocalRingOptions& options,
             Communicator& communicator, RankOutcome& outcome) {
  at::set_num_threads(options.threads);
  const c10::InferenceMode inference;
  RankAssignment& assignment = job->assignment;
  if (options.alter) options.alter(assignment);
  RingProgress progress;
  RingOptions ring = {.scale = Scale(assignment.spec),
                      .lse_without_sinks = assignment.lse_without_sinks,
                      .exchange_deadline = kPatience};
  if (options.on_step) {
    ring.on_step = [&](int step) { options.on_step(assignment.plan.rank, step, progress); };
  }
  const RankTensors tensors = MakeTensors(job);
  ResetMemoryCount();
  const auto begin = std::chrono::steady_clock::now();
  const double processor_begin = ThreadSeconds();
  outcome.status = RunRing(assignment.plan, MakeFormat(assignment.spec), tensors, ring,
                           communicator, progress, outcome.statistics);
  outcome.processor_seconds = ThreadSeconds() - processor_begin;
  outcome.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  outcome.most_memory_held = MostMemoryHeld();
}

}  // namespace

bool Outcome::ok() const { return status().ok(); }

absl::Status Outcome::status() const {
  for (const RankOutcome& rank : ranks) {
    if (!rank.status.ok()) return rank.status;
  }
  return absl::OkStatus();
}

Outcome RunLocally(const Plan& plan, const Inputs& inputs, const LocalRingOptions& options,
                   const std::vector<Communicator*>& communicators) {
  std::vector<std::shared_ptr<RankJob>> jobs;
  for (int rank = 0; rank < plan.ranks(); ++rank) jobs.push_back(MakeJob(plan, rank));
  Scatter(plan, v1::TENSOR_ID_Q, inputs.q, jobs);
  Scatter(plan, v1::TENSOR_ID_K, inputs.k, jobs);
  Scatter(plan, v1::TENSOR_ID_V, inputs.v, jobs);
  ScatterExtras(plan, inputs, jobs);

  std::vector<std::unique_ptr<MemoryCommunicator>> connected;
  std::vector<Communicator*> members = communicators;
  if (members.empty()) {
    connected = MemoryCommunicator::Connect(plan.ranks());
    for (const auto& communicator : connected) members.push_back(communicator.get());
  }
  Outcome outcome;
  outcome.ranks.resize(plan.ranks());
  std::vector<std::thread> threads;
  for (int rank = 0; rank < plan.ranks(); ++rank) {
    threads.emplace_back([&, rank] {
      RunRank(jobs[rank], options, *members[plan.ranks() - 1 - rank], outcome.ranks[rank]);
    });
  }
  for (std::thread& thread : threads) thread.join();
  outcome.out = Gather(plan, v1::TENSOR_ID_OUT, jobs);
  outcome.lse = Gather(plan, v1::TENSOR_ID_LSE, jobs);
  return outcome;
}

}  // namespace ringserve::test
