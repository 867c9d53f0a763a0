#include "worker/comm/nccl_communicator.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/time.h"
#include "worker/comm/post_rules.h"

namespace ringserve {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;

// Between two looks at what the device or another member has to do first.
constexpr milliseconds kBuildPause{2};
constexpr microseconds kShortestPause{20};
constexpr microseconds kLongestPause{1'000};

template <typename Op>
uint64_t BytesOf(const Op& op) {
  uint64_t bytes = 0;
  for (const auto& part : op.parts) bytes += part.size();
  return bytes;
}

// The bytes of a transfer, if they lie in one piece.
template <typename Op>
auto OnePiece(const Op& op) -> std::optional<std::decay_t<decltype(op.parts[0])>> {
  std::decay_t<decltype(op.parts[0])> piece;
  for (const auto& part : op.parts) {
    if (part.empty()) continue;
    if (!piece.empty()) return std::nullopt;
    piece = part;
  }
  return piece;
}

}  // namespace

NcclCommunicator::NcclCommunicator(NcclLibrary& library, std::shared_ptr<BuildOrder> order,
                                   int self, std::vector<std::string> names, NcclOptions options,
                                   std::function<void(const absl::Status&)> on_built)
    : library_(library),
      order_(std::move(order)),
      place_(order_->Enter()),
      self_(self),
      names_(std::move(names)),
      options_(std::move(options)),
      on_built_(std::move(on_built)),
      counters_(names_.size()),
      keeper_([this] { Keep(); }) {}

NcclCommunicator::~NcclCommunicator() {
  static_cast<void>(End(absl::CancelledError("the communicator is destroyed")));
  keeper_.join();
}

void NcclCommunicator::Meet(const std::string& unique_id) {
  absl::MutexLock lock(&mu_);
  if (!unique_id_.has_value()) unique_id_ = unique_id;
}

void NcclCommunicator::Abort(absl::Status reason) {
  absl::MutexLock lock(&mu_);
  if (reason_.ok()) reason_ = std::move(reason);
}

std::vector<PeerCounters> NcclCommunicator::counters() const {
  absl::MutexLock lock(&mu_);
  return counters_;
}

absl::Status NcclCommunicator::reason() const {
  absl::MutexLock lock(&mu_);
  return reason_;
}

bool NcclCommunicator::EndsWithin(Clock::duration wait) const {
  const auto ended = [this]() ABSL_SHARED_LOCKS_REQUIRED(mu_) { return !reason_.ok(); };
  absl::MutexLock lock(&mu_);
  return mu_.AwaitWithTimeout(absl::Condition(&ended), absl::FromChrono(wait));
}

void NcclCommunicator::Keep() {
  const absl::Status built = Build();
  if (built.ok()) order_->Leave(place_);
  if (!built.ok()) Abort(built);
  on_built_(built);
  while (!EndsWithin(std::chrono::hours(1))) continue;
  Quieten();
  if (!built.ok()) order_->Leave(place_);  // what was half built is no more
}

absl::Status NcclCommunicator::Build() {
  const absl::StatusOr<std::string> unique_id = AwaitUniqueId();
  if (!unique_id.ok()) return unique_id.status();
  absl::Status turn = AwaitTurn(place_);
  if (!turn.ok()) return turn;
  absl::StatusOr<std::unique_ptr<NcclLink>> link =
      library_.Connect(*unique_id, static_cast<int>(names_.size()), self_);
  if (!link.ok()) return link.status();
  {
    absl::MutexLock lock(&link_mu_);
    link_ = *std::move(link);
  }
  do {
    absl::MutexLock lock(&link_mu_);
    const absl::StatusOr<bool> settled = link_->Settled();
    if (!settled.ok()) return settled.status();
    if (!*settled) continue;
    absl::MutexLock state(&mu_);
    built_ = true;
    return reason_;
  } while (!EndsWithin(kBuildPause));
  return reason();
}

absl::StatusOr<std::string> NcclCommunicator::AwaitUniqueId() {
  const auto over = [this]() ABSL_SHARED_LOCKS_REQUIRED(mu_) {
    return unique_id_.has_value() || !reason_.ok();
  };
  absl::MutexLock lock(&mu_);
  mu_.Await(absl::Condition(&over));
  if (!reason_.ok()) return reason_;
  return *unique_id_;
}

absl::Status NcclCommunicator::AwaitTurn(uint64_t place) {
  while (!order_->IsFirst(place)) {
    if (EndsWithin(kBuildPause)) break;
  }
  return reason();
}

void NcclCommunicator::Quieten() {
  // A call of the engine's that never returns holds the link for good.
  const Clock::time_point deadline = Clock::now() + options_.abort_patience;
  bool told = false;
  while (!link_mu_.TryLock()) {
    if (Clock::now() > deadline && !std::exchange(told, true)) {
      options_.on_stuck("a call of NCCL or CUDA does not return");
    }
    std::this_thread::sleep_for(kBuildPause);
  }
  if (link_ != nullptr) link_->Abort();
  link_.reset();
  link_mu_.Unlock();
  absl::MutexLock lock(&mu_);
  quiet_ = true;
}

absl::StatusOr<Communicator::Ticket> NcclCommunicator::Post(const TransferTag& tag,
                                                            std::span<const SendOp> sends,
                                                            std::span<const RecvOp> recvs) {
  const absl::Status wrong = CheckPost(self_, static_cast<int>(names_.size()), sends, recvs);
  if (!wrong.ok()) return End(wrong);
  const Ticket ticket = ++last_;
  if (!sends.empty() || !recvs.empty()) {
    groups_.push_back({.ticket = ticket,
                       .sends = std::vector(sends.begin(), sends.end()),
                       .recvs = std::vector(recvs.begin(), recvs.end())});
  }
  const absl::StatusOr<bool> advanced =
      Advance([&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(link_mu_) -> absl::StatusOr<bool> {
        if (groups_.empty() || groups_.back().ticket != ticket || groups_.back().launched) {
          return true;
        }
        absl::StatusOr<NcclLink::Event> now = link_->MarkComputing();
        if (!now.ok()) return now.status();
        groups_.back().after = *now;
        return true;
      });
  if (!advanced.ok()) return End(advanced.status());
  return ticket;
}

absl::Status NcclCommunicator::Then(Ticket ticket, Clock::time_point deadline) {
  const Ticket behind = ticket - std::min<Ticket>(ticket, options_.steps_ahead);
  return Await(
      [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(link_mu_) -> absl::StatusOr<bool> {
        if (!Complete(behind)) return false;
        const Group* last = nullptr;  // of those that are not complete
        for (const Group& group : groups_) {
          if (group.ticket > ticket) break;
          if (!group.behind.has_value()) return false;
          last = &group;
        }
        if (last == nullptr) return true;
        const absl::Status follows = link_->ComputingFollows(*last->behind);
        if (!follows.ok()) return follows;
        return true;
      },
      deadline);
}

absl::Status NcclCommunicator::Finish(Clock::time_point deadline) {
  return Await([&]() -> absl::StatusOr<bool> { return groups_.empty(); }, deadline);
}

absl::Status NcclCommunicator::Await(const std::function<absl::StatusOr<bool>()>& done,
                                     Clock::time_point deadline) {
  for (microseconds pause = kShortestPause;; pause = std::min(2 * pause, kLongestPause)) {
    const absl::StatusOr<bool> advanced = Advance(done);
    if (!advanced.ok()) return End(advanced.status());
    if (*advanced) return absl::OkStatus();
    const Clock::duration left = deadline - Clock::now();
    if (left <= Clock::duration::zero()) {
      return End(absl::DeadlineExceededError(
          absl::StrCat("the exchange is not complete with ", PendingPeers())));
    }
    EndsWithin(std::min<Clock::duration>(pause, left));
  }
}

// What can be done now: launches what waits, takes in what is complete, and asks `done`. False also
// where nothing can be done yet.
absl::StatusOr<bool> NcclCommunicator::Advance(const std::function<absl::StatusOr<bool>()>& done) {
  {
    absl::MutexLock lock(&mu_);
    if (!reason_.ok()) return reason_;
    if (!built_) return groups_.empty();
  }
  if (!link_mu_.TryLock()) return false;  // it is being ended
  absl::StatusOr<bool> advanced = false;
  if (link_ != nullptr) {
    const absl::Status status = AdvanceLocked();
    advanced = status.ok() ? done() : status;
  }
  link_mu_.Unlock();
  return advanced;
}

absl::Status NcclCommunicator::AdvanceLocked() {
  absl::StatusOr<bool> settled = link_->Settled();  // tells, too, what has gone wrong meanwhile
  if (!settled.ok()) return settled.status();
  for (Group& group : groups_) {
    if (group.behind.has_value()) continue;
    if (!group.launched) {
      absl::Status launched = LaunchLocked(group);
      if (!launched.ok()) return launched;
      settled = link_->Settled();
      if (!settled.ok()) return settled.status();
    }
    if (!*settled) break;
    absl::Status followed = FollowUpLocked(group);
    if (!followed.ok()) return followed;
  }
  while (!groups_.empty() && groups_.front().behind.has_value()) {
    const absl::StatusOr<bool> reached = link_->Reached(*groups_.front().behind);
    if (!reached.ok()) return reached.status();
    if (!*reached) break;
    link_->Forget(*groups_.front().behind);
    Count(groups_.front());
    groups_.pop_front();
  }
  return absl::OkStatus();
}

absl::Status NcclCommunicator::LaunchLocked(Group& group) {
  if (!group.after.has_value()) {
    const absl::StatusOr<NcclLink::Event> now = link_->MarkComputing();
    if (!now.ok()) return now.status();
    group.after = *now;
  }
  absl::Status status = link_->Follow(*group.after);
  if (!status.ok()) return status;
  link_->Forget(*group.after);
  std::vector<NcclSend> sends;
  std::vector<NcclRecv> recvs;
  status = StageLocked(group, sends, recvs);
  if (status.ok() && sends.size() + recvs.size() > 0) status = link_->Launch(sends, recvs);
  group.launched = true;
  return status;
}

// What lies in several parts travels by way of one piece: NCCL pairs pieces, and the other side may
// have cut differently. Transfers of no bytes do not travel.
absl::Status NcclCommunicator::StageLocked(Group& group, std::vector<NcclSend>& sends,
                                           std::vector<NcclRecv>& recvs) {
  const auto take = [&](const auto& op) ABSL_EXCLUSIVE_LOCKS_REQUIRED(link_mu_) {
    absl::StatusOr<std::byte*> memory = nullptr;
    if (!OnePiece(op).has_value()) memory = link_->Take(BytesOf(op));
    if (memory.ok()) group.staged.push_back(*memory);
    return memory.status();
  };
  for (const SendOp& send : group.sends) {
    const uint64_t bytes = BytesOf(send);
    absl::Status taken = take(send);
    if (!taken.ok()) return taken;
    std::byte* to = group.staged.back();
    if (bytes == 0) continue;
    sends.push_back({send.peer, to == nullptr ? *OnePiece(send) : std::span(to, bytes)});
    for (const std::span<const std::byte>& part : send.parts) {
      if (to == nullptr || part.empty()) continue;
      absl::Status copied = link_->Copy(to, part.data(), part.size());
      if (!copied.ok()) return copied;
      to += part.size();
    }
  }
  for (const RecvOp& recv : group.recvs) {
    const uint64_t bytes = BytesOf(recv);
    absl::Status taken = take(recv);
    if (!taken.ok()) return taken;
    std::byte* const to = group.staged.back();
    if (bytes == 0) continue;
    recvs.push_back({recv.peer, to == nullptr ? *OnePiece(recv) : std::span(to, bytes)});
  }
  return absl::OkStatus();
}

// Its kernel is on the stream: what comes behind it goes there, too.
absl::Status NcclCommunicator::FollowUpLocked(Group& group) {
  for (size_t i = 0; i < group.recvs.size(); ++i) {
    const std::byte* from = group.staged[group.sends.size() + i];
    for (const std::span<std::byte>& part : group.recvs[i].parts) {
      if (from == nullptr || part.empty()) continue;
      absl::Status copied = link_->Copy(part.data(), from, part.size());
      if (!copied.ok()) return copied;
      from += part.size();
    }
  }
  for (std::byte* const memory : group.staged) {
    absl::Status given = memory == nullptr ? absl::OkStatus() : link_->Give(memory);
    if (!given.ok()) return given;
  }
  const absl::StatusOr<NcclLink::Event> behind = link_->Mark();
  if (!behind.ok()) return behind.status();
  group.behind = *behind;
  return absl::OkStatus();
}

void NcclCommunicator::Count(const Group& group) {
  absl::MutexLock lock(&mu_);
  for (const SendOp& send : group.sends) {
    counters_[send.peer].bytes_sent += BytesOf(send);
    ++counters_[send.peer].messages_sent;
  }
  for (const RecvOp& recv : group.recvs) {
    counters_[recv.peer].bytes_received += BytesOf(recv);
    ++counters_[recv.peer].messages_received;
  }
}

bool NcclCommunicator::Complete(Ticket ticket) const {
  return groups_.empty() || groups_.front().ticket > ticket;
}

std::string NcclCommunicator::PendingPeers() const {
  std::set<int> peers;
  for (const Group& group : groups_) {
    for (const SendOp& send : group.sends) peers.insert(send.peer);
    for (const RecvOp& recv : group.recvs) peers.insert(recv.peer);
  }
  return absl::StrJoin(peers, ", ",
                       [this](std::string* out, int peer) { absl::StrAppend(out, names_[peer]); });
}

absl::Status NcclCommunicator::End(absl::Status reason) {
  Abort(std::move(reason));
  {
    absl::MutexLock lock(&mu_);
    if (!mu_.AwaitWithTimeout(absl::Condition(&quiet_),
                              absl::FromChrono(options_.abort_patience))) {
      options_.on_stuck("the device does not come to rest");
      mu_.Await(absl::Condition(&quiet_));
    }
  }
  groups_.clear();
  return this->reason();
}

}  // namespace ringserve
