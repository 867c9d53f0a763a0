#include "tests/worker/fake_cluster.h"

#include <cstdlib>
#include <cstring>
#include <numeric>
#include <stdexcept>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/chunk_sequence.h"
#include "proto/status.h"
#include "proto/tensor_shape.h"
#include "proto/transport.h"
#include "server/plan/shard_map.h"

namespace ringserve::test {
namespace {

ShardMap MapOf(const Plan& plan, v1::TensorId tensor) {
  const bool keys = tensor == v1::TENSOR_ID_K || tensor == v1::TENSOR_ID_V;
  return ShardMap(ShapeOf(tensor, plan.spec), keys ? plan.kv : plan.q);
}

std::string ShardOf(const Plan& plan, v1::TensorId tensor, const std::string& whole, int rank) {
  const ShardMap map = MapOf(plan, tensor);
  std::string shard(map.ShardBytes(rank), '\0');
  for (const ByteRun& run : map.FromShard(rank, 0, shard.size())) {
    std::memcpy(shard.data() + run.shard_offset, whole.data() + run.tensor_offset, run.size);
  }
  return shard;
}

}  // namespace

RankCall::RankCall(v1::Shard::Stub& stub, v1::Assignment assignment)
    : assignment_(std::move(assignment)) {
  context_.set_deadline(std::chrono::system_clock::now() + kPatience);
  stream_ = stub.Run(&context_);
}

RankCall::~RankCall() {
  if (finished_) return;
  Break();
  Finish().IgnoreError();
}

bool RankCall::Assign() {
  v1::ShardRequest request;
  *request.mutable_assignment() = assignment_;
  return Send(request);
}

bool RankCall::Upload(v1::TensorId tensor, const std::string& shard, uint64_t chunk_bytes) {
  for (uint64_t offset = 0; offset < shard.size(); offset += chunk_bytes) {
    v1::ShardRequest request;
    v1::Chunk* chunk = request.add_chunks();
    chunk->set_tensor(tensor);
    chunk->set_offset(offset);
    chunk->set_data(shard.substr(offset, chunk_bytes));
    if (!Send(request)) return false;
  }
  return true;
}

bool RankCall::UploadShards(const Plan& plan, const Tensors& tensors) {
  const int rank = assignment_.rank();
  return Upload(v1::TENSOR_ID_Q, ShardOf(plan, v1::TENSOR_ID_Q, tensors.q, rank)) &&
         Upload(v1::TENSOR_ID_K, ShardOf(plan, v1::TENSOR_ID_K, tensors.k, rank)) &&
         Upload(v1::TENSOR_ID_V, ShardOf(plan, v1::TENSOR_ID_V, tensors.v, rank));
}

bool RankCall::Start(const std::string& epoch, const std::vector<int>& members) {
  v1::ShardRequest request;
  request.mutable_start()->set_epoch(epoch);
  request.mutable_start()->mutable_members()->Assign(members.begin(), members.end());
  return Send(request);
}

bool RankCall::Cancel() {
  v1::ShardRequest request;
  request.set_cancel(true);
  return Send(request);
}

bool RankCall::AwaitReady() {
  v1::ShardResponse response;
  return Read(response) && response.ready();
}

absl::Status RankCall::Collect(const Plan& plan, Tensors& tensors, v1::RankStatistics* statistics) {
  ChunkCoverage coverage;
  const ShardMap out = MapOf(plan, v1::TENSOR_ID_OUT), lse = MapOf(plan, v1::TENSOR_ID_LSE);
  const int rank = assignment_.rank();
  tensors.out.resize(ShapeOf(v1::TENSOR_ID_OUT, plan.spec).bytes());
  tensors.lse.resize(ShapeOf(v1::TENSOR_ID_LSE, plan.spec).bytes());
  if (out.ShardBytes(rank) > 0) coverage.Expect(v1::TENSOR_ID_OUT, out.ShardBytes(rank));
  if (lse.ShardBytes(rank) > 0 && assignment_.return_lse()) {
    coverage.Expect(v1::TENSOR_ID_LSE, lse.ShardBytes(rank));
  }
  v1::ShardResponse response;
  bool done = false;
  while (Read(response)) {
    if (done) return absl::InternalError("a message after `done`");
    for (const v1::Chunk& chunk : response.chunks()) {
      const absl::Status status =
          coverage.Accept(chunk.tensor(), chunk.offset(), chunk.data().size());
      if (!status.ok()) return status;
      const bool is_out = chunk.tensor() == v1::TENSOR_ID_OUT;
      std::string& whole = is_out ? tensors.out : tensors.lse;
      for (const ByteRun& run :
           (is_out ? out : lse).FromShard(rank, chunk.offset(), chunk.data().size())) {
        std::memcpy(whole.data() + run.tensor_offset,
                    chunk.data().data() + (run.shard_offset - chunk.offset()), run.size);
      }
    }
    done = response.has_done();
    if (done && statistics != nullptr) *statistics = response.done();
  }
  const absl::Status status = Finish();
  if (!status.ok()) return status;
  if (!done) return absl::InternalError("the call ended OK without `done`");
  if (!coverage.complete()) return absl::InternalError("rows are missing");
  return status;
}

absl::Status RankCall::Finish() {
  v1::ShardResponse response;
  while (stream_->Read(&response)) {
  }
  finished_ = true;
  return FromGrpc(stream_->Finish());
}

FakeCluster::FakeCluster(int workers, std::vector<std::string> flags) {
  flags.insert(flags.end(), {"--coordinator", coordinator_.address(), "--threads", "1",
                             "--log-level", "debug", "--die-with-parent"});
  const char* other = std::getenv("RINGSERVE_TEST_WORKER");
  for (int i = 0; i < workers; ++i) {
    workers_.push_back(
        spawner_.Start(Binary(other == nullptr ? "ringserve-worker" : other), flags));
    if (!coordinator_.AwaitJoins(i + 1)) {
      throw std::runtime_error(absl::StrCat("no worker joined:\n", workers_[i]->log()));
    }
    members_.push_back(&coordinator_.member(i));
    addresses_.push_back(members_[i]->hello().address());
    members_[i]->Welcome(absl::StrCat("w", i), 50, 1'000 * kSlowness);
    stubs_.push_back(v1::Shard::NewStub(grpc::CreateCustomChannel(
        addresses_[i], grpc::InsecureChannelCredentials(), MakeChannelArguments())));
  }
  if (!NextEpoch(epoch_)) throw std::runtime_error("a worker could not build the epoch");
}

bool FakeCluster::NextEpoch(const std::string& id) {
  epoch_ = id;
  for (size_t i = 0; i < members_.size(); ++i) {
    members_[i]->SendEpoch(id, addresses_, static_cast<int>(i));
  }
  for (Member* member : members_) {
    if (!member->AwaitEpochReady(id)) return false;
  }
  return true;
}

Plan FakeCluster::MakePlanFor(const v1::AttentionSpec& spec, v1::AttentionOptions options) const {
  const int workers = static_cast<int>(workers_.size());
  if (options.workers() == 0) options.set_workers(workers);
  const absl::StatusOr<Plan> plan =
      MakePlan(spec, options, {.workers = workers}, DefaultMeasurements());
  if (!plan.ok()) throw std::runtime_error(plan.status().ToString());
  return *plan;
}

std::vector<std::unique_ptr<RankCall>> FakeCluster::Open(const Plan& plan) {
  std::vector<std::unique_ptr<RankCall>> calls;
  const uint64_t job = next_job_++;
  for (int rank = 0; rank < plan.ranks(); ++rank) {
    v1::Assignment assignment = AssignmentFor(plan, rank);
    assignment.set_job(job);
    assignment.set_request_id(absl::StrCat("r", job));
    calls.push_back(std::make_unique<RankCall>(stub(rank), std::move(assignment)));
    calls.back()->Assign();
  }
  return calls;
}

absl::Status FakeCluster::Run(const Plan& plan, Tensors& tensors,
                              std::vector<v1::RankStatistics>* statistics) {
  const auto calls = Open(plan);
  std::vector<int> members(plan.ranks());
  std::iota(members.begin(), members.end(), 0);
  for (const auto& call : calls) {
    if (!call->UploadShards(plan, tensors) || !call->AwaitReady()) return call->Finish();
  }
  for (const auto& call : calls) call->Start(epoch_, members);
  absl::Status status;
  for (const auto& call : calls) {
    v1::RankStatistics rank;
    const absl::Status collected = call->Collect(plan, tensors, &rank);
    if (status.ok()) status = collected;
    if (statistics != nullptr) statistics->push_back(rank);
  }
  return status;
}

}  // namespace ringserve::test
