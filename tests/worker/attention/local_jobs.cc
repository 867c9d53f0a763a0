#include "tests/worker/attention/local_jobs.h"

#include <cassert>
#include <cstring>
#include <stdexcept>

#include "proto/tensor_shape.h"
#include "server/plan/shard_map.h"
#include "worker/assignment.h"
#include "worker/host_memory.h"

namespace ringserve::test {
namespace {

ShardMap MapOf(const Plan& plan, v1::TensorId tensor) {
  return ShardMap(ShapeOf(tensor, plan.spec), IsOfKeys(tensor) ? plan.kv : plan.q);
}

// As the coordinator's router and the worker see it: what all ranks have, and a bias that batch
// rows with layouts of their own share.
void ScatterExtras(const Plan& plan, const Inputs& inputs, const Jobs& jobs) {
  for (const std::shared_ptr<RankJob>& job : jobs) {
    if (!inputs.alibi_slopes.empty())
      std::memcpy(job->slopes.data, inputs.alibi_slopes.data(), inputs.alibi_slopes.size());
    if (!inputs.sink_logits.empty())
      std::memcpy(job->sinks.data, inputs.sink_logits.data(), inputs.sink_logits.size());
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
      std::memcpy(jobs[run.rank]->bias.data + begins[run.rank] + run.shard_offset,
                  &inputs.bias[run.tensor_offset], run.size);
    }
    for (int rank = 0; rank < plan.ranks(); ++rank) begins[rank] += map.ShardBytes(rank);
  }
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
  HostMemory memory;
  if (const absl::Status status = job->Allocate(memory); !status.ok()) {
    throw std::runtime_error(status.ToString());
  }
  return job;
}

}  // namespace

void Scatter(const Plan& plan, v1::TensorId tensor, const std::vector<std::byte>& bytes,
             const Jobs& jobs) {
  assert(bytes.size() == ShapeOf(tensor, plan.spec).bytes());
  for (const ByteRun& run : MapOf(plan, tensor).FromTensor(0, bytes.size())) {
    std::memcpy(jobs[run.rank]->Data(tensor) + run.shard_offset, &bytes[run.tensor_offset],
                run.size);
  }
}

std::vector<std::byte> Gather(const Plan& plan, v1::TensorId tensor, const Jobs& jobs) {
  std::vector<std::byte> bytes(ShapeOf(tensor, plan.spec).bytes());
  const ShardMap map = MapOf(plan, tensor);
  for (int rank = 0; rank < plan.ranks(); ++rank) {
    for (const ByteRun& run : map.FromShard(rank, 0, map.ShardBytes(rank))) {
      std::memcpy(&bytes[run.tensor_offset], jobs[rank]->Data(tensor) + run.shard_offset, run.size);
    }
  }
  return bytes;
}

Jobs MakeJobs(const Plan& plan) {
  Jobs jobs;
  for (int rank = 0; rank < plan.ranks(); ++rank) jobs.push_back(MakeJob(plan, rank));
  return jobs;
}

Jobs MakeJobs(const Plan& plan, const Inputs& inputs) {
  Jobs jobs = MakeJobs(plan);
  Scatter(plan, v1::TENSOR_ID_Q, inputs.q, jobs);
  Scatter(plan, v1::TENSOR_ID_K, inputs.k, jobs);
  Scatter(plan, v1::TENSOR_ID_V, inputs.v, jobs);
  ScatterExtras(plan, inputs, jobs);
  return jobs;
}

}  // namespace ringserve::test
