// What this worker sends to one peer in one epoch: dials the peer when there is something to send,
// again and again while it does not know the epoch yet, and then writes the posted transfers as
// frames that reference the caller's bytes.
#pragma once

#include <deque>
#include <memory>
#include <string>

#include <grpcpp/channel.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/support/byte_buffer.h>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "worker/comm/communicator.h"
#include "worker/comm/errands.h"
#include "worker/comm/transfers.h"

namespace ringserve {

// From whom to whom, and where.
struct RingRoute {
  std::string epoch;
  int from = 0;
  int to = 0;
  std::string address;  // of `to`
  std::string name;     // of `to`, for messages
};

// Thread safe. Calls into `transfers` may end the communicator, which calls End here: they are made
// without the lock.
class RingSender : public std::enable_shared_from_this<RingSender> {
 public:
  RingSender(RingRoute route, std::shared_ptr<grpc::ChannelCredentials> credentials,
             std::shared_ptr<Transfers> transfers, std::shared_ptr<Errands> errands);
  ~RingSender();

  // Dials, if it has not. The call also watches the peer: its death ends the call.
  void Open();

  // Complete when gRPC has let go of the bytes.
  void Post(Transfers::Ticket ticket, const TransferTag& tag, SendOp op);

  // Breaks the call and forgets what is not written. Returns at once: bytes that are under way stay
  // until gRPC lets go of them.
  void End();

 private:
  class Call;
  class Outgoing;

  // Reactions of the call.
  void Accepted(bool ok);
  void Wrote(bool ok);
  void HungUp(Call& call);
  void Over(const absl::Status& status);

  void DialLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void DialAgain();
  void WriteLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const RingRoute route_;
  const std::shared_ptr<grpc::ChannelCredentials> credentials_;
  const std::shared_ptr<Transfers> transfers_;
  const std::shared_ptr<Errands> errands_;

  absl::Mutex mu_;
  std::shared_ptr<grpc::Channel> channel_ ABSL_GUARDED_BY(mu_);
  std::shared_ptr<Call> call_ ABSL_GUARDED_BY(mu_);
  bool dialled_ ABSL_GUARDED_BY(mu_) = false;
  bool accepted_ ABSL_GUARDED_BY(mu_) = false;  // the peer has taken the call
  bool hung_up_ ABSL_GUARDED_BY(mu_) = false;   // the call has come to its end
  bool writing_ ABSL_GUARDED_BY(mu_) = false;
  bool closed_ ABSL_GUARDED_BY(mu_) = false;                       // no call will follow
  Errands::Clock::time_point first_refusal_ ABSL_GUARDED_BY(mu_);  // of the connection
  std::deque<std::shared_ptr<Outgoing>> queue_ ABSL_GUARDED_BY(mu_);
};

}  // namespace ringserve
