// What one peer sends to this worker in one epoch: takes its frames from the Pass call that brings
// them and puts their bytes into the posted receives, in the order of the posts. Reads no further
// than what is posted, and one message more.
#pragma once

#include <deque>
#include <memory>
#include <string>

#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "worker/comm/communicator.h"
#include "worker/comm/transfers.h"

namespace ringserve {

class FrameReader;

// Thread safe. Calls into `transfers` may end the communicator, which calls End here: they are made
// without the lock.
class RingReceiver {
 public:
  // `name` is the peer's, for messages.
  RingReceiver(std::shared_ptr<Transfers> transfers, int peer, std::string name)
      : transfers_(std::move(transfers)), peer_(peer), name_(std::move(name)) {}

  // Its bytes go into op.parts when they come.
  void Post(Transfers::Ticket ticket, const TransferTag& tag, RecvOp op);

  // The call that brings the frames from now on: reads from it and finishes it. UNAVAILABLE: ended;
  // INVALID_ARGUMENT: there was one already. Then the call is still the caller's to finish.
  absl::Status Attach(grpc::ServerReadReactor<grpc::ByteBuffer>* call);

  // Reactions of the attached call: a read is over; it is cancelled, or its connection is lost.
  void OnRead(bool ok);
  void OnBroken();

  // Finishes the call. When this has returned, no posted buffer is written to any more.
  void End(const absl::Status& reason);

 private:
  struct Incoming {
    Transfers::Ticket ticket = 0;
    TransferTag tag;
    std::vector<std::span<std::byte>> parts;
    uint64_t size = 0;
    uint64_t received = 0;
    size_t part = 0;         // where the next byte goes
    uint64_t part_used = 0;  // of that part
  };

  // Takes the message that was read, if a receive waits for it. Not OK: it contradicts that one.
  absl::Status TakeLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  static bool Copy(FrameReader& frame, uint64_t bytes, Incoming& into);
  void FinishLocked(const absl::Status& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const std::shared_ptr<Transfers> transfers_;
  const int peer_;
  const std::string name_;

  absl::Mutex mu_;
  std::deque<Incoming> posted_ ABSL_GUARDED_BY(mu_);
  grpc::ServerReadReactor<grpc::ByteBuffer>* call_ ABSL_GUARDED_BY(mu_) = nullptr;  // not finished
  bool attached_ ABSL_GUARDED_BY(mu_) = false;
  grpc::ByteBuffer message_ ABSL_GUARDED_BY(mu_);  // gRPC's, but for `holding_`
  bool holding_ ABSL_GUARDED_BY(mu_) = false;      // a message that no receive waited for yet
  absl::Status verdict_ ABSL_GUARDED_BY(mu_);      // what was wrong with a frame
  bool ended_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace ringserve
