// One Attend or AttendBackward call by the generated stub, a message at a time: for callers that
// are slow, greedy, wrong or gone. The real client library cannot be held in a state, nor be made
// to lie.
#pragma once

#include <chrono>
#include <cstddef>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <grpcpp/grpcpp.h>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "proto/transport.h"
#include "ringserve/v1/attention.grpc.pb.h"
#include "tests/integration/request.h"
#include "tests/support/wait.h"

namespace ringserve::test {

// A connection of its own.
std::shared_ptr<grpc::Channel> NewChannel(const std::string& address);

class RawCall {
 public:
  // `prepare` may change the context before the call begins.
  explicit RawCall(std::shared_ptr<grpc::Channel> channel,
                   std::chrono::milliseconds deadline = 3 * kPatience,
                   const std::function<void(grpc::ClientContext&)>& prepare = {},
                   bool backward = false);
  ~RawCall();  // breaks it off

  // Each is false when the call is over.
  bool Send(const v1::AttendRequest& message);
  bool SendHeader(const v1::AttendHeader& header);
  bool SendChunk(int tensor, uint64_t offset, std::string data);
  // The bytes [begin, end) of one tensor, in chunks of 1 MiB at most.
  bool SendBytes(v1::TensorId tensor, const std::vector<std::byte>& bytes, size_t begin,
                 size_t end);
  bool SendTensors(const Request& request);  // q, k and v
  bool HalfClose();

  // The next message; nothing: the call is over.
  std::optional<v1::AttendResponse> Read();
  bool AwaitAccepted();

  // Reads to the end: every byte must come once, and the statistics last.
  absl::StatusOr<Answer> Collect(const Request& request);

  // The status, when everything else has been read or thrown away.
  absl::Status Finish();

  void Cancel() { context_.TryCancel(); }

 private:
  const std::shared_ptr<grpc::Channel> channel_;
  const std::unique_ptr<v1::Attention::Stub> stub_;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReaderWriter<v1::AttendRequest, v1::AttendResponse>> stream_;
  bool finished_ = false;
};

}  // namespace ringserve::test
