#include "tests/support/memory_communicator.h"

#include <cstring>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"

namespace ringserve::test {
namespace {

template <typename Parts>
std::vector<std::byte> Joined(const Parts& parts) {
  std::vector<std::byte> bytes;
  for (const auto& part : parts) bytes.insert(bytes.end(), part.begin(), part.end());
  return bytes;
}

template <typename Op>
bool NamesAPeerTwice(std::span<const Op> ops) {
  std::set<int> peers;
  for (const Op& op : ops) {
    if (!peers.insert(op.peer).second) return true;
  }
  return false;
}

}  // namespace

std::vector<std::unique_ptr<MemoryCommunicator>> MemoryCommunicator::Connect(int members) {
  auto hub = std::make_shared<Hub>();
  {
    absl::MutexLock lock(&hub->mu);
    hub->members.resize(members);
    for (Hub::Member& member : hub->members) member.counters.resize(members);
  }
  std::vector<std::unique_ptr<MemoryCommunicator>> all;
  for (int self = 0; self < members; ++self) {
    all.push_back(std::unique_ptr<MemoryCommunicator>(new MemoryCommunicator(hub, self)));
  }
  return all;
}

absl::StatusOr<Communicator::Ticket> MemoryCommunicator::Post(const TransferTag& tag,
                                                              std::span<const SendOp> sends,
                                                              std::span<const RecvOp> recvs) {
  absl::MutexLock lock(&hub_->mu);
  if (!hub_->ended.ok()) return hub_->ended;
  if (NamesAPeerTwice(sends) || NamesAPeerTwice(recvs)) {
    hub_->ended = absl::InternalError("a post names a peer twice");
    return hub_->ended;
  }
  Hub::Member& self = hub_->members[self_];
  const Ticket ticket = ++self.posts;
  const int transfers = static_cast<int>(sends.size() + recvs.size());
  if (transfers > 0) self.unfinished[ticket] = transfers;
  for (const SendOp& op : sends) {
    hub_->ways[{self_, op.peer}].sends.push_back({tag, op, ticket});
    hub_->Move(self_, op.peer);
  }
  for (const RecvOp& op : recvs) {
    hub_->ways[{op.peer, self_}].recvs.push_back({tag, op, ticket});
    hub_->Move(op.peer, self_);
  }
  if (!hub_->ended.ok()) return hub_->ended;
  return ticket;
}

void MemoryCommunicator::Hub::Move(int from, int to) {
  Way& way = ways[{from, to}];
  while (ended.ok() && !way.sends.empty() && !way.recvs.empty()) {
    const Send& send = way.sends.front();
    const Recv& recv = way.recvs.front();
    const std::vector<std::byte> bytes = Joined(send.op.parts);
    size_t room = 0;
    for (const auto& part : recv.op.parts) room += part.size();
    if (!(send.tag == recv.tag) || bytes.size() != room) {
      ended = absl::InternalError(absl::StrCat(from, " sends ", bytes.size(), " bytes of step ",
                                               send.tag.step, ", ", to, " awaits ", room,
                                               " of step ", recv.tag.step));
      return;
    }
    size_t at = 0;
    for (const auto& part : recv.op.parts) {
      if (!part.empty()) std::memcpy(part.data(), bytes.data() + at, part.size());
      at += part.size();
    }
    PeerCounters& sender = members[from].counters[to];
    sender.bytes_sent += room;
    ++sender.messages_sent;
    PeerCounters& receiver = members[to].counters[from];
    receiver.bytes_received += room;
    ++receiver.messages_received;
    const std::pair<Member&, Ticket> ends[] = {{members[from], send.ticket},
                                               {members[to], recv.ticket}};
    for (const auto& [member, ticket] : ends) {
      if (--member.unfinished[ticket] == 0) member.unfinished.erase(ticket);
    }
    way.sends.pop_front();
    way.recvs.pop_front();
  }
}

absl::Status MemoryCommunicator::Await(Ticket last, Clock::time_point deadline) {
  absl::MutexLock lock(&hub_->mu);
  const auto over = [&]() ABSL_SHARED_LOCKS_REQUIRED(hub_->mu) {
    const std::map<Ticket, int>& unfinished = hub_->members[self_].unfinished;
    return !hub_->ended.ok() || unfinished.empty() || unfinished.begin()->first > last;
  };
  const absl::Duration patience = absl::FromChrono(deadline - Clock::now());
  if (!hub_->mu.AwaitWithTimeout(absl::Condition(&over), patience) && hub_->ended.ok()) {
    hub_->ended = absl::DeadlineExceededError(absl::StrCat("a peer of ", self_, " is late"));
  }
  return hub_->ended;
}

absl::Status MemoryCommunicator::Then(Ticket ticket, Clock::time_point deadline) {
  return Await(ticket, deadline);
}

absl::Status MemoryCommunicator::Finish(Clock::time_point deadline) {
  return Await(~Ticket{0}, deadline);
}

void MemoryCommunicator::Abort(absl::Status reason) {
  absl::MutexLock lock(&hub_->mu);
  if (hub_->ended.ok()) hub_->ended = std::move(reason);
}

std::vector<PeerCounters> MemoryCommunicator::counters() const {
  absl::MutexLock lock(&hub_->mu);
  return hub_->members[self_].counters;
}

}  // namespace ringserve::test
