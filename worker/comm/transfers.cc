#include "worker/comm/transfers.h"

#include <algorithm>
#include <utility>

#include "absl/time/time.h"

namespace ringserve {

Transfers::Transfers(int members, std::function<void()> on_end)
    : on_end_(std::move(on_end)), pending_by_peer_(members), lost_(members), counters_(members) {}

absl::StatusOr<Transfers::Ticket> Transfers::Begin(const std::vector<int>& peers) {
  absl::MutexLock lock(&mu_);
  if (!status_.ok()) return status_;
  for (const int peer : peers) {
    if (!lost_[peer].ok()) return lost_[peer];
  }
  const Ticket ticket = next_++;
  if (!peers.empty()) pending_[ticket] = static_cast<int>(peers.size());
  for (const int peer : peers) ++pending_by_peer_[peer];
  return ticket;
}

void Transfers::Sent(int peer, uint64_t bytes) {
  absl::MutexLock lock(&mu_);
  counters_[peer].bytes_sent += bytes;
}

void Transfers::Received(int peer, uint64_t bytes) {
  absl::MutexLock lock(&mu_);
  counters_[peer].bytes_received += bytes;
}

void Transfers::SendComplete(Ticket ticket, int peer) {
  absl::MutexLock lock(&mu_);
  ++counters_[peer].messages_sent;
  CompleteLocked(ticket, peer);
}

void Transfers::ReceiveComplete(Ticket ticket, int peer) {
  absl::MutexLock lock(&mu_);
  ++counters_[peer].messages_received;
  CompleteLocked(ticket, peer);
}

void Transfers::CompleteLocked(Ticket ticket, int peer) {
  --pending_by_peer_[peer];
  const auto it = pending_.find(ticket);
  if (--it->second == 0) pending_.erase(it);
}

void Transfers::Lose(int peer, absl::Status why) {
  {
    absl::MutexLock lock(&mu_);
    if (!lost_[peer].ok()) return;
    lost_[peer] = why;
    if (pending_by_peer_[peer] == 0) return;
  }
  End(std::move(why));
}

void Transfers::End(absl::Status why) {
  {
    absl::MutexLock lock(&mu_);
    if (!status_.ok()) return;
    status_ = std::move(why);
  }
  on_end_();
}

template <typename Done>
absl::Status Transfers::AwaitCondition(const Done& done, Clock::time_point deadline) {
  const auto over = [&]() ABSL_SHARED_LOCKS_REQUIRED(mu_) { return !status_.ok() || done(); };
  const absl::Duration left = absl::FromChrono(deadline - Clock::now());
  absl::MutexLock lock(&mu_);
  if (!mu_.AwaitWithTimeout(absl::Condition(&over), std::max(left, absl::ZeroDuration()))) {
    return absl::DeadlineExceededError("transfers are not complete");
  }
  return status_;
}

absl::Status Transfers::Await(Ticket ticket, Clock::time_point deadline) {
  return AwaitCondition(
      [&]() ABSL_SHARED_LOCKS_REQUIRED(mu_) { return pending_.count(ticket) == 0; }, deadline);
}

absl::Status Transfers::AwaitAll(Clock::time_point deadline) {
  return AwaitCondition([&]() ABSL_SHARED_LOCKS_REQUIRED(mu_) { return pending_.empty(); },
                        deadline);
}

absl::Status Transfers::status() const {
  absl::MutexLock lock(&mu_);
  return status_;
}

std::vector<int> Transfers::PendingPeers() const {
  absl::MutexLock lock(&mu_);
  std::vector<int> peers;
  for (size_t peer = 0; peer < pending_by_peer_.size(); ++peer) {
    if (pending_by_peer_[peer] > 0) peers.push_back(static_cast<int>(peer));
  }
  return peers;
}

std::vector<PeerCounters> Transfers::counters() const {
  absl::MutexLock lock(&mu_);
  return counters_;
}

}  // namespace ringserve
