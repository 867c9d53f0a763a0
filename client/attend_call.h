// One attempt of one Attend or AttendBackward call: sends the header and the caller's spans, reads
// while it writes, and copies every result byte once, after a bounds check. Knows nothing of
// retries or connections.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/client_callback.h>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/notification.h"
#include "client/loan.h"
#include "client/spans.h"
#include "proto/chunk_sequence.h"
#include "ringserve/client.h"

namespace ringserve {

// Use: construct, Start, AwaitDone until true, Result, destroy. Uploaded bytes may stay referenced
// after that: the spans must live until the loan is returned.
class AttendCall : private grpc::ClientBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer> {
 public:
  // `spans` are those of the header, see SpansOf; `backward`: of AttendBackward.
  AttendCall(const v1::AttendHeader& header, const CallSpans& spans, bool backward,
             std::shared_ptr<Loan> loan);

  void Start(const std::shared_ptr<grpc::Channel>& channel,
             std::chrono::system_clock::time_point deadline);

  // True once the call has ended; waits for that, at most `timeout`.
  bool AwaitDone(std::chrono::milliseconds timeout);

  // After AwaitDone. OK only when every byte of every output came exactly once. INTERNAL: the
  // server broke the protocol; else the server's status, with its retry mark.
  absl::StatusOr<v1::Statistics> Result() const;

  // The server took the job: an UNAVAILABLE after that is worth another attempt.
  bool accepted() const { return accepted_; }

  uint64_t bytes_moved() const { return bytes_moved_; }

 private:
  void OnWriteDone(bool ok) override;
  void OnReadDone(bool ok) override;
  void OnDone(const grpc::Status& status) override;

  void WriteNext();
  absl::Status Receive(const grpc::ByteBuffer& message);
  absl::Status ReceiveChunks(const grpc::ByteBuffer& message);

  const bool backward_;
  grpc::ClientContext context_;
  const std::shared_ptr<Loan> loan_;
  std::atomic<uint64_t> bytes_moved_{0};
  std::atomic<bool> accepted_{false};

  // Write reactions.
  grpc::ByteBuffer outgoing_;
  const std::vector<CallSpans::Input> uploads_;
  size_t next_upload_ = 0;
  uint64_t sent_ = 0;  // of it

  // Read reactions.
  grpc::ByteBuffer incoming_;
  const std::vector<CallSpans::Output> downloads_;
  ChunkCoverage coverage_;
  std::optional<v1::Statistics> statistics_;
  absl::Status breach_;  // how the server broke the protocol

  absl::Status status_;  // written before done_
  absl::Notification done_;
};

}  // namespace ringserve
