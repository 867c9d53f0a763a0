// What a communicator's transfers have come to: which are pending, how much has moved, whether it
// has ended and why. Knows nothing of how bytes move.
//
// Thread safe. Its lock is a leaf: it may be called from wherever gRPC lets go of bytes.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "worker/comm/communicator.h"

namespace ringserve {

class Transfers {
 public:
  using Ticket = Communicator::Ticket;
  using Clock = Communicator::Clock;

  // `on_end` is called once, by whoever brings the end, without any lock held here.
  Transfers(int members, std::function<void()> on_end);

  // One transfer with each peer named is pending from now on. Returns why it has ended, or has to
  // end because a peer named is lost.
  absl::StatusOr<Ticket> Begin(const std::vector<int>& peers);

  // Bytes have moved; the transfer is complete.
  void Sent(int peer, uint64_t bytes);
  void Received(int peer, uint64_t bytes);
  void SendComplete(Ticket ticket, int peer);
  void ReceiveComplete(Ticket ticket, int peer);

  // The peer cannot be reached any more: the end if anything is pending with it, now or later. The
  // caller holds no lock that on_end takes.
  void Lose(int peer, absl::Status why);

  // The end; the first reason counts. The caller holds no lock that on_end takes.
  void End(absl::Status why);

  // Waits until the ticket, or everything, is complete. Returns why it has ended, if it has;
  // DEADLINE_EXCEEDED does not end it here.
  absl::Status Await(Ticket ticket, Clock::time_point deadline);
  absl::Status AwaitAll(Clock::time_point deadline);

  absl::Status status() const;
  std::vector<int> PendingPeers() const;
  std::vector<PeerCounters> counters() const;

 private:
  void CompleteLocked(Ticket ticket, int peer) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  template <typename Done>
  absl::Status AwaitCondition(const Done& done, Clock::time_point deadline);

  const std::function<void()> on_end_;
  mutable absl::Mutex mu_;
  absl::Status status_ ABSL_GUARDED_BY(mu_);
  Ticket next_ ABSL_GUARDED_BY(mu_) = 1;
  std::map<Ticket, int> pending_ ABSL_GUARDED_BY(mu_);  // how many transfers of each are left
  std::vector<int> pending_by_peer_ ABSL_GUARDED_BY(mu_);
  std::vector<absl::Status> lost_ ABSL_GUARDED_BY(mu_);  // by peer; OK: not lost
  std::vector<PeerCounters> counters_ ABSL_GUARDED_BY(mu_);
};

}  // namespace ringserve
