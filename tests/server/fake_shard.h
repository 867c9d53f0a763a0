// A worker as the data line sees it: the Shard service for real, on a port of its own, whose every
// call does what the test says; and a membership without a Join call, that never falls silent.
#pragma once

#include <algorithm>
#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <grpcpp/grpcpp.h>

#include "absl/synchronization/notification.h"
#include "proto/protocol.h"
#include "proto/tensor_shape.h"
#include "proto/transport.h"
#include "ringserve/v1/shard.grpc.pb.h"
#include "server/coordinator.h"
#include "tests/server/make_hello.h"

namespace ringserve::test {

// One Shard.Run as the worker sees it. Functions that wait say false when the call is over.
class RankRun {
 public:
  using Stream = grpc::ServerReaderWriter<v1::ShardResponse, v1::ShardRequest>;

  RankRun(grpc::ServerContext& context, Stream& stream) : context_(context), stream_(stream) {}

  bool TakeAssignment() {
    v1::ShardRequest request;
    if (!stream_.Read(&request) || !request.has_assignment()) return false;
    assignment_ = request.assignment();
    return true;
  }

  // Takes one message of the upload. Every byte must come once, in order: else `disorder`.
  bool TakeChunks() {
    v1::ShardRequest request;
    if (!stream_.Read(&request) || request.chunks().empty()) return false;
    for (const v1::Chunk& chunk : request.chunks()) {
      std::string& shard = shards_[chunk.tensor()];
      disorder_ |= chunk.offset() != shard.size() || chunk.data().empty();
      shard += chunk.data();
    }
    return true;
  }
  bool TakeUpload() {
    while (!complete()) {
      if (!TakeChunks()) return false;
    }
    return !disorder_;
  }
  bool complete() {
    const std::vector<v1::TensorId> uploads = UploadsOf(
        assignment_.spec(), {.backward = assignment_.backward(), .d_lse = assignment_.d_lse()});
    return std::all_of(uploads.begin(), uploads.end(), [&](v1::TensorId tensor) {
      return shards_[tensor].size() == Bytes(tensor);
    });
  }

  bool SayReady() {
    v1::ShardResponse response;
    response.set_ready(true);
    return stream_.Write(response);
  }

  // Takes the next message; whether it is this.
  bool TakeStart() {
    v1::ShardRequest request;
    return stream_.Read(&request) && request.has_start();
  }
  bool TakeCancel() {
    v1::ShardRequest request;
    return stream_.Read(&request) && request.cancel();
  }

  // All that comes before the rows.
  bool TakeJob() { return TakeAssignment() && TakeUpload() && SayReady() && TakeStart(); }

  bool SendChunk(int tensor, uint64_t offset, const std::string& bytes) {
    v1::ShardResponse response;
    v1::Chunk* chunk = response.add_chunks();
    chunk->set_tensor(static_cast<v1::TensorId>(tensor));
    chunk->set_offset(offset);
    chunk->set_data(bytes);
    return stream_.Write(response);
  }

  // Answers out = q, and an lse whose element of a row is the row's first four bytes of q (float32,
  // [B,H,S,D]); backward: what came as the gradients of itself.
  bool SendRows(size_t piece = 1 << 20) {
    if (assignment_.backward()) return SendGradients(piece);
    const std::string& q = shards_[v1::TENSOR_ID_Q];
    if (!SendAll(v1::TENSOR_ID_OUT, q, piece)) return false;
    if (!assignment_.return_lse()) return true;
    std::string lse;
    const size_t row_bytes = assignment_.spec().head_dim() * 4;
    for (size_t row = 0; row < q.size(); row += row_bytes) lse += q.substr(row, 4);
    return SendAll(v1::TENSOR_ID_LSE, lse, piece);
  }

  bool SendDone() {
    v1::ShardResponse response;
    response.mutable_done()->set_tiles(7);
    response.mutable_done()->set_bytes_sent(100 + assignment_.rank());
    return stream_.Write(response);
  }

  const v1::Assignment& assignment() const { return assignment_; }
  grpc::ServerContext& context() { return context_; }

 private:
  bool SendAll(v1::TensorId tensor, const std::string& bytes, size_t piece) {
    for (size_t done = 0; done < bytes.size(); done += piece) {
      if (!SendChunk(tensor, done, bytes.substr(done, piece))) return false;
    }
    return true;
  }

  bool SendGradients(size_t piece) {
    return SendAll(v1::TENSOR_ID_D_Q, shards_[v1::TENSOR_ID_Q], piece) &&
           SendAll(v1::TENSOR_ID_D_K, shards_[v1::TENSOR_ID_K], piece) &&
           SendAll(v1::TENSOR_ID_D_V, shards_[v1::TENSOR_ID_V], piece) &&
           (assignment_.rank() != 0 ||
            SendAll(v1::TENSOR_ID_D_SINK_LOGITS, shards_[v1::TENSOR_ID_SINK_LOGITS], piece));
  }

  // Of this rank's shard.
  uint64_t Bytes(v1::TensorId tensor) const {
    TensorShape shape = ShapeOf(tensor, assignment_.spec());
    if (IsPerHead(tensor)) return shape.bytes();
    const auto& held =
        IsOfKeys(tensor) ? assignment_.kv_shards(assignment_.rank()).rows() : assignment_.q_rows();
    shape.rows = held.empty() ? 0 : held[0];
    return shape.bytes();
  }

  grpc::ServerContext& context_;
  Stream& stream_;
  v1::Assignment assignment_;
  std::map<v1::TensorId, std::string> shards_;
  bool disorder_ = false;
};

// What a good worker does.
inline grpc::Status Echo(RankRun& run) {
  if (!run.TakeJob() || !run.SendRows() || !run.SendDone()) {
    return grpc::Status(grpc::StatusCode::CANCELLED, "the call ended early");
  }
  return grpc::Status::OK;
}

// What a worker says when it is asked for a job whose call broke.
enum class Recall { kReleases, kHolds, kIsSilent };

class FakeShard : private v1::Shard::Service {
 public:
  using Script = std::function<grpc::Status(RankRun& run)>;

  FakeShard(Coordinator& coordinator, Script script, uint64_t memory_bytes)
      : coordinator_(coordinator), script_(std::move(script)) {
    int port = 0;
    grpc::ServerBuilder builder;
    ConfigureServer(builder);
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
    membership_ = std::make_shared<Membership>(coordinator);
    membership_->id =
        coordinator.Join(MakeHello("127.0.0.1:" + std::to_string(port), memory_bytes), membership_);
    membership_->joined.Notify();
  }
  ~FakeShard() override { StopServing(); }

  // Its Join call ends; what it serves goes on.
  void Leave() { coordinator_.Leave(membership_->id); }

  // How it answers from now on.
  void OnRecall(Recall answer) { membership_->answer = answer; }
  // Says of this job that nothing of it is left.
  void Release(uint64_t job) { membership_->Say(job, false); }
  std::atomic<uint64_t>& recalled() { return membership_->recalled; }  // the last such job

  // Calls that run are broken, and no one is answered any more.
  void StopServing() { server_->Shutdown(std::chrono::system_clock::now()); }

 private:
  // Says of every epoch at once that it is ready.
  struct Membership : MemberListener {
    explicit Membership(Coordinator& coordinator) : coordinator(coordinator) {}
    void Send(const v1::CoordinatorMessage& message) override {
      if (message.recall_job() != 0) {
        if (answer != Recall::kIsSilent) Say(message.recall_job(), answer == Recall::kHolds);
        recalled = message.recall_job();
      }
      if (!message.has_epoch()) return;
      joined.WaitForNotification();
      v1::WorkerMessage ready;
      ready.set_epoch_ready(message.epoch().id());
      coordinator.Receive(id, ready);
    }
    void End(const absl::Status&) override {}
    void Say(uint64_t job, bool held) {
      v1::WorkerMessage message;
      message.mutable_recalled()->set_job(job);
      message.mutable_recalled()->set_held(held);
      coordinator.Receive(id, message);
    }

    Coordinator& coordinator;
    Coordinator::MemberId id = 0;
    absl::Notification joined;  // `id` is known
    std::atomic<Recall> answer{Recall::kReleases};
    std::atomic<uint64_t> recalled{0};
  };

  grpc::Status Run(grpc::ServerContext* context, RankRun::Stream* stream) override {
    RankRun run(*context, *stream);
    context->AddTrailingMetadata(kReleasedKey, "1");
    return script_(run);
  }

  Coordinator& coordinator_;
  const Script script_;
  std::shared_ptr<Membership> membership_;
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace ringserve::test
