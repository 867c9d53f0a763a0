// The data line under test: a real server of the public service, the real coordinator, fake
// workers, and clients that may do anything.
#pragma once

#include <algorithm>
#include <chrono>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include "proto/status.h"
#include "proto/tensor_shape.h"
#include "proto/transport.h"
#include "ringserve/v1/attention.grpc.pb.h"
#include "server/attend_calls.h"
#include "server/attention_service.h"
#include "tests/server/fake_shard.h"
#include "tests/support/wait.h"

namespace ringserve::test {

// A whole request's tensors, float32 in [B, H, S, D].
struct Request {
  v1::AttendHeader header;
  std::string q, k, v;
};

inline Request MakeRequest(int q_len = 10, int workers = 1, int head_dim = 4) {
  Request request;
  v1::AttentionSpec& spec = *request.header.mutable_spec();
  spec.set_batch(1);
  spec.set_q_heads(2);
  spec.set_kv_heads(1);
  spec.set_q_len(q_len);
  spec.set_kv_len(q_len);
  spec.set_head_dim(head_dim);
  spec.set_dtype(v1::DTYPE_F32);
  request.header.mutable_options()->set_workers(workers);
  request.header.mutable_options()->set_return_lse(true);
  request.header.set_request_id("test-request");
  std::mt19937 random(q_len);
  for (const auto& [tensor, bytes] : {std::pair{v1::TENSOR_ID_Q, &request.q},
                                      {v1::TENSOR_ID_K, &request.k},
                                      {v1::TENSOR_ID_V, &request.v}}) {
    bytes->resize(ShapeOf(tensor, spec).bytes());
    for (char& byte : *bytes) byte = static_cast<char>(random());
  }
  return request;
}

// One Attend or AttendBackward call as a client makes it, by hand.
class ClientCall {
 public:
  explicit ClientCall(v1::Attention::Stub& stub, std::chrono::milliseconds deadline = kPatience,
                      bool backward = false) {
    context_.set_deadline(std::chrono::system_clock::now() + deadline);
    stream_ = backward ? stub.AttendBackward(&context_) : stub.Attend(&context_);
  }
  ~ClientCall() {
    if (finished_) return;
    Break();
    Finish().IgnoreError();
  }

  // False: the call is over.
  bool Send(const v1::AttendRequest& request) { return stream_->Write(request); }
  bool SendHeader(const v1::AttendHeader& header) {
    v1::AttendRequest request;
    *request.mutable_header() = header;
    return Send(request);
  }
  bool SendChunk(int tensor, uint64_t offset, const std::string& bytes) {
    v1::AttendRequest request;
    v1::Chunk* chunk = request.add_chunks();
    chunk->set_tensor(static_cast<v1::TensorId>(tensor));
    chunk->set_offset(offset);
    chunk->set_data(bytes);
    return Send(request);
  }
  bool SendTensor(v1::TensorId tensor, const std::string& bytes, size_t piece = 1 << 20) {
    for (size_t done = 0; done < bytes.size(); done += piece) {
      if (!SendChunk(tensor, done, bytes.substr(done, piece))) return false;
    }
    return true;
  }
  bool SendTensors(const Request& request) {
    return SendTensor(v1::TENSOR_ID_Q, request.q) && SendTensor(v1::TENSOR_ID_K, request.k) &&
           SendTensor(v1::TENSOR_ID_V, request.v);
  }
  bool SendAll(const Request& request) {
    return SendHeader(request.header) && SendTensors(request) && HalfClose();
  }
  bool HalfClose() { return stream_->WritesDone(); }

  bool Read(v1::AttendResponse& response) { return stream_->Read(&response); }
  bool AwaitAccepted() {
    v1::AttendResponse response;
    return Read(response) && response.has_accepted();
  }

  // Reads to the end, into out, lse and statistics.
  absl::Status Collect(const Request& request) {
    out.resize(request.q.size());
    lse.resize(ShapeOf(v1::TENSOR_ID_LSE, request.header.spec()).bytes());
    v1::AttendResponse response;
    while (Read(response)) {
      for (const v1::Chunk& chunk : response.chunks()) {
        std::string& whole = chunk.tensor() == v1::TENSOR_ID_OUT ? out : lse;
        whole.replace(chunk.offset(), chunk.data().size(), chunk.data());
      }
      if (response.has_statistics()) statistics = response.statistics();
    }
    return Finish();
  }

  // The status, when everything else has been read and thrown away.
  absl::Status Finish() {
    v1::AttendResponse response;
    while (stream_->Read(&response)) {
    }
    finished_ = true;
    return FromGrpc(stream_->Finish(), context_);
  }

  void Break() { context_.TryCancel(); }

  std::string out, lse;
  v1::Statistics statistics;

 private:
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReaderWriter<v1::AttendRequest, v1::AttendResponse>> stream_;
  bool finished_ = false;
};

class AttendFixture : public ::testing::Test {
 protected:
  // Once, and before workers.
  void Serve(AttendOptions options = {}, CoordinatorOptions coordinator = {}) {
    coordinator.lost_after = coordinator.exchange_deadline = std::chrono::hours(1);
    coordinator.heartbeat_interval = std::chrono::milliseconds(50);
    coordinator_ = std::make_unique<Coordinator>(std::move(coordinator));
    calls_ = std::make_unique<AttendCalls>(*coordinator_, grpc::InsecureChannelCredentials(),
                                           std::move(options));
    service_ = std::make_unique<AttentionService>(*coordinator_, *calls_);
    int port = 0;
    grpc::ServerBuilder builder;
    ConfigureServer(builder);
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(service_.get());
    server_ = builder.BuildAndStart();
    address_ = "127.0.0.1:" + std::to_string(port);
    stub_ = NewStub();
  }

  // Waits until jobs may use it.
  FakeShard& AddWorker(FakeShard::Script script = Echo, uint64_t memory_bytes = 1 << 30) {
    workers_.push_back(std::make_unique<FakeShard>(*coordinator_, std::move(script), memory_bytes));
    EXPECT_TRUE(WaitUntil(
        [&] { return coordinator_->group().workers == static_cast<int>(workers_.size()); }));
    return *workers_.back();
  }

  std::unique_ptr<ClientCall> OpenBackward() {
    return std::make_unique<ClientCall>(*stub_, kPatience, /*backward=*/true);
  }

  // With a connection of its own.
  std::unique_ptr<v1::Attention::Stub> NewStub() {
    return v1::Attention::NewStub(grpc::CreateCustomChannel(
        address_, grpc::InsecureChannelCredentials(), MakeChannelArguments()));
  }
  std::unique_ptr<ClientCall> Open(std::chrono::milliseconds deadline = kPatience) {
    return std::make_unique<ClientCall>(*stub_, deadline);
  }

  // A whole request, answered right.
  void ExpectServed(const Request& request) {
    const auto call = Open();
    EXPECT_TRUE(call->SendAll(request));
    const absl::Status status = call->Collect(request);
    EXPECT_TRUE(status.ok()) << status;
    ExpectRight(request, *call);
  }
  void ExpectRight(const Request& request, const ClientCall& call) {
    EXPECT_TRUE(call.out == request.q);
    std::string lse;
    const size_t row_bytes = request.header.spec().head_dim() * 4;
    for (size_t row = 0; row < request.q.size(); row += row_bytes) lse += request.q.substr(row, 4);
    EXPECT_TRUE(call.lse == lse);
  }

  bool AwaitUnfinished(int queued, int unfinished) {
    return WaitUntil([&] {
      const v1::GetClusterResponse cluster = coordinator_->Describe();
      return cluster.queued_jobs() == queued && cluster.unfinished_jobs() == unfinished;
    });
  }

  // Nothing is left of any request: no call, no job, no memory.
  void ExpectNothingLeft() {
    EXPECT_TRUE(calls_->AwaitNone(kPatience));
    EXPECT_TRUE(coordinator_->AwaitIdle(kPatience));
    EXPECT_EQ(calls_->held_bytes(), 0u);
    EXPECT_TRUE(WaitUntil([&] {
      const v1::GetClusterResponse cluster = coordinator_->Describe();
      return std::all_of(cluster.workers().begin(), cluster.workers().end(),
                         [](const v1::Worker& worker) { return worker.reserved_bytes() == 0; });
    }));
  }

  void TearDown() override { End(); }

  // What scripts use must outlive this: tests whose scripts use their locals call it themselves.
  void End() {
    if (server_ == nullptr) return;
    ExpectNothingLeft();
    server_->Shutdown(std::chrono::system_clock::now() + kPatience);
    workers_.clear();
    server_.reset();
    service_.reset();
    calls_.reset();
    coordinator_.reset();
  }

  std::unique_ptr<Coordinator> coordinator_;
  std::unique_ptr<AttendCalls> calls_;
  std::unique_ptr<AttentionService> service_;
  std::unique_ptr<grpc::Server> server_;
  std::string address_;
  std::unique_ptr<v1::Attention::Stub> stub_;
  std::vector<std::unique_ptr<FakeShard>> workers_;
};

}  // namespace ringserve::test
