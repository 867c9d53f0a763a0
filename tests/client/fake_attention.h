// A server of the Attention service that does what a test says, message by message, over a real
// connection.
#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <grpcpp/grpcpp.h>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "proto/protocol.h"
#include "ringserve/v1/attention.grpc.pb.h"

namespace ringserve::test {

class FakeAttention : private v1::Attention::Service {
 public:
  using Stream = grpc::ServerReaderWriter<v1::AttendResponse, v1::AttendRequest>;
  // `attempt` counts the calls from 1.
  using Script =
      std::function<grpc::Status(Stream& stream, grpc::ServerContext& context, int attempt)>;

  explicit FakeAttention(
      Script script,
      std::shared_ptr<grpc::ServerCredentials> credentials = grpc::InsecureServerCredentials(),
      const std::string& address = "127.0.0.1:0")
      : script_(std::move(script)) {
    grpc::ServerBuilder builder;
    int port = 0;
    builder.AddListeningPort(address, std::move(credentials), &port);
    builder.SetMaxReceiveMessageSize(kReceiveLimitBytes);
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
    address_ = "127.0.0.1:" + std::to_string(port);
  }
  ~FakeAttention() override { Stop(); }

  // Calls that run are cancelled; new connections are refused.
  void Stop() { server_->Shutdown(std::chrono::system_clock::now()); }

  const std::string& address() const { return address_; }
  int calls() const { return calls_; }  // of either method
  int backward_calls() const { return backward_calls_; }

  // What GetCluster answers from now on. A lock, for calls are answered by threads of the server.
  void SetCluster(v1::GetClusterResponse cluster) {
    absl::MutexLock lock(&mu_);
    cluster_ = std::move(cluster);
  }

 private:
  grpc::Status Attend(grpc::ServerContext* context, Stream* stream) override {
    return script_(*stream, *context, ++calls_);
  }
  grpc::Status AttendBackward(grpc::ServerContext* context, Stream* stream) override {
    ++backward_calls_;
    return script_(*stream, *context, ++calls_);
  }
  grpc::Status Plan(grpc::ServerContext*, const v1::PlanRequest* request,
                    v1::PlanResponse* response) override {
    response->mutable_plan()->set_workers(request->options().workers());
    if (request->backward()) response->mutable_plan()->set_reason("backward");
    return grpc::Status::OK;
  }
  grpc::Status GetCluster(grpc::ServerContext*, const v1::GetClusterRequest*,
                          v1::GetClusterResponse* response) override {
    absl::MutexLock lock(&mu_);
    *response = cluster_;
    response->set_version("fake");
    return grpc::Status::OK;
  }

  const Script script_;
  std::atomic<int> calls_{0}, backward_calls_{0};
  absl::Mutex mu_;
  v1::GetClusterResponse cluster_ ABSL_GUARDED_BY(mu_);
  std::string address_;
  std::unique_ptr<grpc::Server> server_;
};

// What a well-behaved server does, in pieces.

struct Upload {
  v1::AttendHeader header;
  std::string q, k, v;
  std::map<v1::TensorId, std::string> others;
};

// Reads everything until the client half-closes or goes away.
inline Upload ReadUpload(FakeAttention::Stream& stream) {
  Upload upload;
  v1::AttendRequest request;
  while (stream.Read(&request)) {
    if (request.has_header()) upload.header = request.header();
    for (const v1::Chunk& chunk : request.chunks()) {
      std::string& tensor = chunk.tensor() == v1::TENSOR_ID_Q   ? upload.q
                            : chunk.tensor() == v1::TENSOR_ID_K ? upload.k
                            : chunk.tensor() == v1::TENSOR_ID_V ? upload.v
                                                                : upload.others[chunk.tensor()];
      if (tensor.size() == chunk.offset()) tensor += chunk.data();
    }
  }
  return upload;
}

inline void Accept(FakeAttention::Stream& stream) {
  v1::AttendResponse response;
  response.mutable_accepted()->mutable_plan()->set_workers(1);
  stream.Write(response);
}

inline void SendChunk(FakeAttention::Stream& stream, int tensor, uint64_t offset,
                      const std::string& bytes) {
  v1::AttendResponse response;
  v1::Chunk* chunk = response.add_chunks();
  chunk->set_tensor(static_cast<v1::TensorId>(tensor));
  chunk->set_offset(offset);
  chunk->set_data(bytes);
  stream.Write(response);
}

inline void SendStatistics(FakeAttention::Stream& stream) {
  v1::AttendResponse response;
  response.mutable_statistics()->set_total_seconds(1);
  stream.Write(response);
}

// Sends `bytes` last piece first.
inline void SendBackwards(FakeAttention::Stream& stream, v1::TensorId tensor,
                          const std::string& bytes, size_t piece = 100'000) {
  for (size_t end = bytes.size(); end > 0;) {
    const size_t begin = end - std::min(end, piece);
    SendChunk(stream, tensor, begin, bytes.substr(begin, end - begin));
    end = begin;
  }
}

// Answers out = q (their sizes agree where v is as wide as q), lse = the first bytes of k.
inline grpc::Status Echo(FakeAttention::Stream& stream, uint64_t lse_bytes) {
  const Upload upload = ReadUpload(stream);
  Accept(stream);
  SendBackwards(stream, v1::TENSOR_ID_OUT, upload.q);
  if (lse_bytes > 0) SendBackwards(stream, v1::TENSOR_ID_LSE, upload.k.substr(0, lse_bytes));
  SendStatistics(stream);
  return grpc::Status::OK;
}

}  // namespace ringserve::test
