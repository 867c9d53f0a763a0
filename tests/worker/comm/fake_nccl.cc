#include "tests/worker/comm/fake_nccl.h"

#include <algorithm>
#include <cstring>
#include <functional>

#include "absl/strings/str_cat.h"

namespace ringserve::test {

class FakeNccl::Library : public NcclLibrary {
 public:
  explicit Library(FakeNccl& fabric) : fabric_(fabric) {}

  absl::StatusOr<std::string> MakeUniqueId() override {
    absl::MutexLock lock(&fabric_.mu_);
    return absl::StrCat("id", ++fabric_.last_id_);
  }
  absl::StatusOr<std::unique_ptr<NcclLink>> Connect(const std::string& unique_id, int members,
                                                    int self) override;

  FakeNccl& fabric_;
  int building_ = 0;
};

class FakeNccl::Link : public NcclLink {
 public:
  Link(Library& library, std::string id, int members, int self)
      : library_(library),
        fabric_(library.fabric_),
        id_(std::move(id)),
        members_(members),
        self_(self) {}

  absl::StatusOr<bool> Settled() override {
    absl::MutexLock lock(&fabric_.mu_);
    const auto failure = fabric_.failures_.find(self_);
    if (failure != fabric_.failures_.end()) {
      const absl::Status status = failure->second;
      fabric_.failures_.erase(failure);
      return status;
    }
    fabric_.RunLocked();
    return built_ && launching_ == nullptr && !fabric_.IdlesLocked();
  }

  // What goes on in the host's background: all are there; both ends of the connections are.
  void Settle(const Communicator& communicator) {
    if (!built_ && static_cast<int>(communicator.links.size()) == members_) {
      built_ = true;
      --library_.building_;
    }
    if (launching_ == nullptr) return;
    for (const auto& [peer, bytes] : launching_->sends) {
      if (communicator.receivers.count({self_, peer}) == 0) return;
    }
    for (const auto& [peer, bytes] : launching_->recvs) {
      if (communicator.senders.count({peer, self_}) == 0) return;
    }
    stream_.push_back({.group = std::move(launching_)});
    launching_ = nullptr;
  }

  absl::Status Launch(const std::vector<NcclSend>& sends,
                      const std::vector<NcclRecv>& recvs) override {
    absl::MutexLock lock(&fabric_.mu_);
    if (!built_ || launching_ != nullptr) return absl::InternalError("launched too early");
    Communicator& communicator = fabric_.communicators_[id_];
    launching_ = std::make_shared<Group>();
    std::string line;
    for (const NcclSend& send : sends) {
      absl::StrAppend(&line, self_, ">", send.peer, ":", send.bytes.size(), " ");
      if (!launching_->sends.emplace(send.peer, send.bytes).second || send.bytes.empty()) {
        return absl::InternalError("a group sends nothing, or twice to one peer");
      }
      communicator.senders.insert({self_, send.peer});
    }
    for (const NcclRecv& recv : recvs) {
      absl::StrAppend(&line, self_, "<", recv.peer, ":", recv.bytes.size(), " ");
      if (!launching_->recvs.emplace(recv.peer, recv.bytes).second || recv.bytes.empty()) {
        return absl::InternalError("a group receives nothing, or twice from one peer");
      }
      communicator.receivers.insert({recv.peer, self_});
    }
    if (!line.empty()) line.pop_back();
    fabric_.launched_[self_].push_back(line);
    return absl::OkStatus();
  }

  absl::StatusOr<Event> Mark() override {
    absl::MutexLock lock(&fabric_.mu_);
    if (launching_ != nullptr) return absl::InternalError("marked before the group is there");
    const Event event = ++fabric_.last_event_;
    fabric_.events_[event] = false;
    stream_.push_back({.reach = event});
    return event;
  }

  absl::StatusOr<Event> MarkComputing() override {
    absl::MutexLock lock(&fabric_.mu_);
    const Event event = ++fabric_.last_event_;
    fabric_.events_[event] = !fabric_.computing_held_;
    if (fabric_.computing_held_) fabric_.computing_.insert(event);
    return event;
  }

  absl::Status Follow(Event event) override {
    absl::MutexLock lock(&fabric_.mu_);
    // Whoever forgets the event does not forget what follows it.
    stream_.push_back({.follow = event});
    return absl::OkStatus();
  }

  absl::Status ComputingFollows(Event event) override {
    absl::MutexLock lock(&fabric_.mu_);
    if (fabric_.events_.count(event) == 0) return absl::InternalError("no such event");
    ++fabric_.computing_follows_;
    return absl::OkStatus();
  }

  absl::StatusOr<bool> Reached(Event event) override {
    absl::MutexLock lock(&fabric_.mu_);
    fabric_.RunLocked();
    if (fabric_.IdlesLocked()) return false;
    return fabric_.events_.at(event);
  }

  void Forget(Event event) override {
    absl::MutexLock lock(&fabric_.mu_);
    if (fabric_.computing_.count(event) > 0) return;  // until it is reached
    fabric_.events_.erase(event);
  }

  absl::StatusOr<std::byte*> Take(size_t bytes) override {
    absl::MutexLock lock(&fabric_.mu_);
    ++fabric_.memory_;
    return new std::byte[bytes];
  }

  absl::Status Copy(std::byte* to, const std::byte* from, size_t bytes) override {
    absl::MutexLock lock(&fabric_.mu_);
    if (launching_ != nullptr) return absl::InternalError("copies before the group is there");
    stream_.push_back({.work = [=] { std::memcpy(to, from, bytes); }});
    return absl::OkStatus();
  }

  absl::Status Give(std::byte* memory) override {
    absl::MutexLock lock(&fabric_.mu_);
    FakeNccl& fabric = fabric_;
    stream_.push_back({.work = [&fabric, memory]() ABSL_NO_THREAD_SAFETY_ANALYSIS {
      delete[] memory;
      --fabric.memory_;
    }});
    return absl::OkStatus();
  }

  // As a real one, that kills its kernels and lets the rest of the stream run out.
  void Abort() override {
    absl::MutexLock lock(&fabric_.mu_);
    FakeNccl& fabric = fabric_;
    const auto may_end = [&fabric]() ABSL_SHARED_LOCKS_REQUIRED(fabric.mu_) {
      return !fabric.aborts_held_;
    };
    fabric_.mu_.Await(absl::Condition(&may_end));
    fabric_.communicators_[id_].links.erase(self_);
    if (!built_) --library_.building_;
    for (const Task& task : stream_) {
      if (task.work) task.work();
      fabric_.events_.erase(task.reach);
    }
    stream_.clear();
  }

  Library& library_;
  FakeNccl& fabric_;
  const std::string id_;
  const int members_, self_;
  bool built_ = false;
  std::shared_ptr<Group> launching_;
  std::deque<Task> stream_;
};

absl::StatusOr<std::unique_ptr<NcclLink>> FakeNccl::Library::Connect(const std::string& unique_id,
                                                                     int members, int self) {
  if (unique_id.empty()) return absl::InvalidArgumentError("not a unique id");
  auto link = std::make_unique<Link>(*this, unique_id, members, self);
  absl::MutexLock lock(&fabric_.mu_);
  fabric_.most_building_ = std::max(fabric_.most_building_, ++building_);
  if (!fabric_.communicators_[unique_id].links.emplace(self, link.get()).second) {
    return absl::InternalError("this member is there already");
  }
  return link;
}

std::unique_ptr<NcclLibrary> FakeNccl::MakeLibrary() { return std::make_unique<Library>(*this); }

// Until nothing moves any more. Every so often a stream is left alone for a while.
void FakeNccl::RunLocked() {
  for (auto& [id, communicator] : communicators_) {
    for (auto& [member, link] : communicator.links) {
      if (!IdlesLocked()) link->Settle(communicator);
    }
  }
  if (held_) return;
  for (bool moved = true; moved;) {
    moved = false;
    for (auto& [id, communicator] : communicators_) {
      for (auto& [member, link] : communicator.links) {
        if (!IdlesLocked()) moved |= StepLocked(communicator, *link);
      }
    }
  }
}

bool FakeNccl::StepLocked(Communicator& communicator, Link& link) {
  if (link.stream_.empty()) return false;
  const Task& task = link.stream_.front();
  if (task.group != nullptr) {
    MeetLocked(communicator, link);
    if (!task.group->sends.empty() || !task.group->recvs.empty()) return false;
  }
  if (task.follow != 0) {
    const auto event = events_.find(task.follow);
    if (event != events_.end() && !event->second) return false;
  }
  if (task.work) task.work();
  if (task.reach != 0) events_[task.reach] = true;
  link.stream_.pop_front();
  return true;
}

// The receives of the group that is first on this stream, with the sends of those that are first on
// its peers'.
void FakeNccl::MeetLocked(Communicator& communicator, Link& link) {
  for (auto& [member, peer] : communicator.links) {
    if (peer->stream_.empty() || peer->stream_.front().group == nullptr) continue;
    Group& theirs = *peer->stream_.front().group;
    Group& ours = *link.stream_.front().group;
    const auto move = [&](Group& from, int sender, Group& to,
                          int receiver) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
      const auto send = from.sends.find(receiver);
      const auto recv = to.recvs.find(sender);
      if (send == from.sends.end() || recv == to.recvs.end()) return;
      if (send->second.size() != recv->second.size()) {
        crossed_.push_back(absl::StrCat(sender, " sends ", send->second.size(), " bytes, and ",
                                        receiver, " awaits ", recv->second.size()));
      } else {
        std::memcpy(recv->second.data(), send->second.data(), send->second.size());
      }
      from.sends.erase(send);
      to.recvs.erase(recv);
    };
    move(theirs, member, ours, link.self_);
    move(ours, link.self_, theirs, member);
  }
}

void FakeNccl::Hold(bool held) {
  absl::MutexLock lock(&mu_);
  held_ = held;
}

void FakeNccl::HoldAborts(bool held) {
  absl::MutexLock lock(&mu_);
  aborts_held_ = held;
}

void FakeNccl::HoldComputing(bool held) {
  absl::MutexLock lock(&mu_);
  computing_held_ = held;
  if (held) return;
  for (const Event event : computing_) events_[event] = true;
  computing_.clear();
}

void FakeNccl::FailNext(int member, absl::Status status) {
  absl::MutexLock lock(&mu_);
  failures_[member] = std::move(status);
}

std::vector<std::string> FakeNccl::crossed() const {
  absl::MutexLock lock(&mu_);
  return crossed_;
}

std::vector<std::string> FakeNccl::launched(int member) const {
  absl::MutexLock lock(&mu_);
  const auto lines = launched_.find(member);
  return lines == launched_.end() ? std::vector<std::string>() : lines->second;
}

int FakeNccl::most_building_at_once() const {
  absl::MutexLock lock(&mu_);
  return most_building_;
}

int FakeNccl::computing_follows() const {
  absl::MutexLock lock(&mu_);
  return computing_follows_;
}

int FakeNccl::left_behind() const {
  absl::MutexLock lock(&mu_);
  return memory_;
}

}  // namespace ringserve::test
