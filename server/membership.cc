#include "server/membership.h"

#include <algorithm>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "server/hello.h"

namespace ringserve {

using std::chrono::milliseconds;

namespace {

// The first attempt after a break comes at once, the later ones ever later.
constexpr milliseconds kFirstRest{100};
constexpr milliseconds kLongestRest{5'000};

constexpr size_t kLargestToken = 1'024;

}  // namespace

bool Membership::Epoch::Has(Id member) const {
  return std::find(members.begin(), members.end(), member) != members.end();
}

Membership::Actions Membership::Join(Id id, const v1::Hello& hello) {
  Actions actions;
  absl::Status status = CheckHello(hello);
  if (status.ok()) status = CheckKind(hello);
  if (!status.ok()) {
    actions.push_back(
        Note{true, absl::StrCat("refused address=", absl::CEscape(hello.address().substr(0, 64)),
                                " reason=", status.ToString())});
    actions.push_back(End{id, status});
    return actions;
  }
  // A worker holds one membership: whoever was there before is no more.
  for (const Member& other : std::vector<Member>(members_)) {
    if (other.hello.address() != hello.address()) continue;
    Lose(other.id, absl::UnavailableError("a worker joined anew from this address"), actions);
  }
  Member member{.id = id, .worker_id = absl::StrCat("w", ++last_worker_), .hello = hello};
  actions.push_back(
      Note{false, absl::StrCat("joined worker=", member.worker_id, " address=", hello.address(),
                               " device=", hello.device(), " threads=", hello.threads(),
                               " memory=", hello.memory_bytes(), " pid=", hello.pid(),
                               " version=", hello.version())});
  v1::CoordinatorMessage message;
  v1::Welcome& welcome = *message.mutable_welcome();
  welcome.set_worker_id(member.worker_id);
  welcome.set_heartbeat_interval_ms(options_.heartbeat_interval.count());
  welcome.set_lost_after_ms(options_.lost_after.count());
  actions.push_back(Send{id, std::move(message)});
  const std::string reason = absl::StrCat(member.worker_id, " joined");
  members_.push_back(std::move(member));
  Renew(reason, actions);
  return actions;
}

Membership::Actions Membership::Receive(Id id, const v1::WorkerMessage& message) {
  Actions actions;
  Member* member = Find(id);
  if (member == nullptr) return actions;
  member->silence = milliseconds(0);
  if (message.has_hello()) {
    Lose(id, absl::InvalidArgumentError("hello came twice"), actions);
    Renew("a worker was lost", actions);
    return actions;
  }
  if (message.has_heartbeat()) {
    member->heartbeat = message.heartbeat();
    v1::CoordinatorMessage alive;
    alive.set_alive(true);
    actions.push_back(Send{id, std::move(alive)});
  }
  if (message.has_rendezvous()) {
    Meet(id, message.rendezvous(), actions);
    if (Find(id) == nullptr) return actions;  // its token was wrong
  }
  if (!message.epoch_ready().empty()) Ready(*member, message.epoch_ready(), actions);
  if (!message.epoch_broken().empty()) {
    const auto epoch = std::find_if(epochs_.begin(), epochs_.end(), [&](const Epoch& candidate) {
      return candidate.id == message.epoch_broken() && candidate.Has(id);
    });
    if (epoch != epochs_.end()) {
      Break(message.epoch_broken(), absl::StrCat("broken, says ", member->worker_id), actions);
    }
  }
  if (message.has_recalled()) {
    const uint64_t job = message.recalled().job();
    member->suspected_for.erase(job);
    if (!message.recalled().held() && member->recalled.erase(job) > 0) {
      actions.push_back(Released{member->worker_id, job});
    }
  }
  if (message.leaving() && !member->leaving) {
    member->leaving = true;
    actions.push_back(Note{false, absl::StrCat("leaving worker=", member->worker_id)});
    Renew(absl::StrCat(member->worker_id, " leaves"), actions);
  }
  return actions;
}

Membership::Actions Membership::CallEnded(Id id) {
  Actions actions;
  if (Find(id) == nullptr) return actions;
  Lose(id, absl::UnavailableError("its call ended"), actions);
  Renew("a worker was lost", actions);
  return actions;
}

Membership::Actions Membership::Tick(Time now) {
  Actions actions;
  const auto passed = last_tick_.has_value()
                          ? std::chrono::duration_cast<milliseconds>(now - *last_tick_)
                          : milliseconds(0);
  last_tick_ = now;
  const milliseconds pause = std::max(2 * options_.heartbeat_interval, options_.lost_after / 2);
  if (passed > pause) {
    counted_ = milliseconds(0);
    if (!members_.empty()) {
      actions.push_back(Note{true, absl::StrCat("paused ms=", passed.count(),
                                                " reason=this process was late: every member's "
                                                "silence is counted anew")});
    }
    for (Member& member : members_) member.silence = milliseconds(0);
    return actions;
  }
  counted_ = std::min(passed, options_.heartbeat_interval);
  rest_ = std::max(rest_ - counted_, milliseconds(0));
  for (Epoch& epoch : epochs_) epoch.age += counted_;
  for (Member& member : members_) member.silence += counted_;

  std::vector<std::pair<Id, std::string>> lost;
  for (const Member& member : members_) {
    if (member.silence > options_.lost_after) {
      lost.emplace_back(member.id,
                        absl::StrCat("silent for more than ", options_.lost_after.count(), " ms"));
    } else if (!epochs_.empty() && epochs_.back().age > options_.build_deadline &&
               epochs_.back().awaited.count(member.id) > 0) {
      lost.emplace_back(member.id,
                        absl::StrCat("has not built epoch ", epochs_.back().id, " within ",
                                     options_.build_deadline.count(), " ms"));
    }
  }
  for (const auto& [id, reason] : lost) Lose(id, absl::UnavailableError(reason), actions);
  if (!epochs_.empty() && epochs_.back().ready() && epochs_.back().members == Wanted() &&
      epochs_.back().age > options_.lost_after) {
    breaks_ = 0;
  }
  Renew(lost.empty() ? "another attempt" : "a worker was lost", actions);
  return actions;
}

Membership::Actions Membership::BreakEpoch(const std::string& epoch, const std::string& reason) {
  Actions actions;
  Break(epoch, reason, actions);
  return actions;
}

Membership::Actions Membership::Recall(const std::string& worker_id, uint64_t job, bool suspect) {
  Actions actions;
  const Member* found = Find(worker_id);
  if (found == nullptr) {
    actions.push_back(Released{worker_id, job});
    return actions;
  }
  Member& member = *Find(found->id);
  member.recalled.insert(job);
  if (suspect) member.suspected_for.insert(job);
  v1::CoordinatorMessage message;
  message.set_recall_job(job);
  actions.push_back(Send{member.id, std::move(message)});
  if (suspect) {
    actions.push_back(Note{true, absl::StrCat("suspect worker=", worker_id,
                                              " reason=its call for job ", job, " broke")});
  }
  return actions;
}

Membership::Actions Membership::Drained(const std::string& epoch) {
  Actions actions;
  Fence(epoch, "drained", actions);
  return actions;
}

Membership::Actions Membership::Idle(const std::string& worker_id) {
  Actions actions;
  const Member* member = Find(worker_id);
  if (member == nullptr || !member->leaving || Seated(member->id)) return actions;
  const Id id = member->id;
  actions.push_back(Note{false, absl::StrCat("left worker=", worker_id)});
  actions.push_back(End{id, absl::OkStatus()});
  actions.push_back(WorkerGone{worker_id, "left", /*lost=*/false});
  members_.erase(std::find_if(members_.begin(), members_.end(),
                              [&](const Member& candidate) { return candidate.id == id; }));
  return actions;
}

Membership::Actions Membership::EndAll(const absl::Status& status) {
  Actions actions;
  for (const Member& member : std::vector<Member>(members_)) Lose(member.id, status, actions);
  return actions;
}

std::string Membership::current_epoch() const {
  return !epochs_.empty() && epochs_.back().ready() ? epochs_.back().id : "";
}

std::vector<std::string> Membership::draining() const {
  const Epoch* current = NewestReady();
  const bool last_too = Wanted().empty();
  std::vector<std::string> ids;
  for (const Epoch& epoch : epochs_) {
    if (epoch.ready() && (&epoch != current || last_too)) ids.push_back(epoch.id);
  }
  return ids;
}

std::vector<std::string> Membership::parting() const {
  std::vector<std::string> workers;
  for (const Member& member : members_) {
    if (member.leaving && !Seated(member.id)) workers.push_back(member.worker_id);
  }
  return workers;
}

std::optional<v1::Start> Membership::Bind(const std::vector<std::string>& workers) const {
  for (auto epoch = epochs_.rbegin(); epoch != epochs_.rend(); ++epoch) {
    if (!epoch->ready() || !Covers(*epoch, workers)) continue;
    v1::Start start;
    start.set_epoch(epoch->id);
    for (const std::string& worker : workers) {
      const auto place = std::find(epoch->members.begin(), epoch->members.end(), Find(worker)->id);
      start.add_members(static_cast<int>(place - epoch->members.begin()));
    }
    return start;
  }
  return std::nullopt;
}

bool Membership::MayBind(const std::vector<std::string>& workers) const {
  const auto stays = [this](const std::string& worker) {
    const Member* member = Find(worker);
    return member != nullptr && !member->leaving;
  };
  return std::all_of(workers.begin(), workers.end(), stays) ||
         std::any_of(epochs_.begin(), epochs_.end(),
                     [&](const Epoch& epoch) { return Covers(epoch, workers); });
}

// Whoever joins anew from an address takes the place of who was there.
absl::Status Membership::CheckKind(const v1::Hello& hello) const {
  const std::string kind = DeviceKind(hello.device());
  for (const Member& other : members_) {
    if (other.hello.address() == hello.address()) continue;
    const std::string theirs = DeviceKind(other.hello.device());
    if (theirs == kind) continue;
    return absl::FailedPreconditionError(
        absl::StrCat("hello.device is ", hello.device(), ": the group's workers are on ", theirs,
                     " (", other.worker_id, "), and a group never mixes ", kind, " and ", theirs));
  }
  return absl::OkStatus();
}

Membership::Member* Membership::Find(Id id) {
  const auto found = std::find_if(members_.begin(), members_.end(),
                                  [&](const Member& member) { return member.id == id; });
  return found == members_.end() ? nullptr : &*found;
}

const Membership::Member* Membership::Find(const std::string& worker_id) const {
  const auto found = std::find_if(members_.begin(), members_.end(), [&](const Member& member) {
    return member.worker_id == worker_id;
  });
  return found == members_.end() ? nullptr : &*found;
}

bool Membership::Seated(Id id) const {
  return std::any_of(epochs_.begin(), epochs_.end(),
                     [&](const Epoch& epoch) { return epoch.Has(id); });
}

std::vector<Membership::Id> Membership::Wanted() const {
  std::vector<Id> wanted;
  for (const Member& member : members_) {
    if (!member.leaving) wanted.push_back(member.id);
  }
  return wanted;
}

const Membership::Epoch* Membership::NewestReady() const {
  for (auto epoch = epochs_.rbegin(); epoch != epochs_.rend(); ++epoch) {
    if (epoch->ready()) return &*epoch;
  }
  return nullptr;
}

bool Membership::Covers(const Epoch& epoch, const std::vector<std::string>& workers) const {
  return std::all_of(workers.begin(), workers.end(), [&](const std::string& worker) {
    const Member* member = Find(worker);
    return member != nullptr && epoch.Has(member->id);
  });
}

void Membership::Lose(Id id, const absl::Status& status, Actions& actions) {
  const Member* member = Find(id);
  const std::string worker_id = member->worker_id;
  const std::string reason(status.message());
  const std::set<uint64_t> recalled = member->recalled;
  actions.push_back(Note{true, absl::StrCat("lost worker=", worker_id, " reason=", reason)});
  members_.erase(members_.begin() + (member - members_.data()));
  rest_ = milliseconds(0);  // what broke may have gone with it
  actions.push_back(End{id, status});
  actions.push_back(WorkerGone{worker_id, reason});
  for (const uint64_t job : recalled) actions.push_back(Released{worker_id, job});
  std::vector<std::string> over;
  for (const Epoch& epoch : epochs_) {
    if (epoch.Has(id)) over.push_back(epoch.id);
  }
  for (const std::string& epoch : over) {
    Fence(epoch, absl::StrCat("worker ", worker_id, " was lost: ", reason), actions);
  }
}

void Membership::Fence(const std::string& id, const std::string& reason, Actions& actions) {
  const auto epoch = std::find_if(epochs_.begin(), epochs_.end(),
                                  [&](const Epoch& candidate) { return candidate.id == id; });
  if (epoch == epochs_.end()) return;
  actions.push_back(Note{false, absl::StrCat("fenced epoch=", id, " reason=", reason)});
  for (const Id member : epoch->members) {
    if (Find(member) == nullptr) continue;
    v1::CoordinatorMessage message;
    message.set_fence_epoch(id);
    actions.push_back(Send{member, std::move(message)});
  }
  actions.push_back(EpochOver{id, reason});
  epochs_.erase(epoch);
}

void Membership::Break(const std::string& id, const std::string& reason, Actions& actions) {
  const auto epoch = std::find_if(epochs_.begin(), epochs_.end(),
                                  [&](const Epoch& candidate) { return candidate.id == id; });
  if (epoch == epochs_.end()) return;
  Fence(id, reason, actions);
  if (breaks_ > 0) rest_ = std::min(kFirstRest * (1 << std::min(breaks_ - 1, 10)), kLongestRest);
  ++breaks_;
  Renew(reason, actions);
}

void Membership::Ready(const Member& member, const std::string& id, Actions& actions) {
  const auto epoch = std::find_if(epochs_.begin(), epochs_.end(),
                                  [&](const Epoch& candidate) { return candidate.id == id; });
  if (epoch == epochs_.end() || epoch->awaited.erase(member.id) == 0) return;
  Find(member.id)->built = true;
  if (!epoch->ready()) return;
  epoch->age = milliseconds(0);
  actions.push_back(
      Note{false, absl::StrCat("ready epoch=", id, " members=", epoch->members.size())});
}

void Membership::Meet(Id id, const v1::Rendezvous& rendezvous, Actions& actions) {
  const auto epoch = std::find_if(epochs_.begin(), epochs_.end(), [&](const Epoch& candidate) {
    return candidate.id == rendezvous.epoch();
  });
  if (epoch == epochs_.end() || epoch->ready() || epoch->met || epoch->members.front() != id) {
    return;
  }
  const size_t bytes = rendezvous.token().size();
  if (bytes == 0 || bytes > kLargestToken) {  // nobody could build the epoch with it
    Lose(id,
         absl::InvalidArgumentError(absl::StrCat("rendezvous.token is ", bytes,
                                                 " bytes long: must be 1 to ", kLargestToken)),
         actions);
    Renew("a worker was lost", actions);
    return;
  }
  epoch->met = true;
  v1::CoordinatorMessage message;
  *message.mutable_rendezvous() = rendezvous;
  for (const Id other : epoch->members) actions.push_back(Send{other, message});
}

void Membership::Renew(const std::string& reason, Actions& actions) {
  const std::vector<Id> wanted = Wanted();
  if (!epochs_.empty() && epochs_.back().members == wanted) return;
  if (!epochs_.empty() && !epochs_.back().ready()) {
    Fence(std::string(epochs_.back().id), absl::StrCat("was not ready when ", reason), actions);
    if (!epochs_.empty() && epochs_.back().members == wanted) return;
  }
  if (wanted.empty() || rest_ > milliseconds(0)) return;
  Epoch epoch{.id = absl::StrCat(options_.incarnation, ".", ++last_epoch_),
              .members = wanted,
              .awaited = std::set<Id>(wanted.begin(), wanted.end())};
  v1::CoordinatorMessage message;
  message.mutable_epoch()->set_id(epoch.id);
  std::vector<std::string> names;
  for (const Id id : wanted) {
    const Member& member = *Find(id);
    v1::Member& entry = *message.mutable_epoch()->add_members();
    entry.set_worker_id(member.worker_id);
    entry.set_address(member.hello.address());
    names.push_back(member.worker_id);
  }
  actions.push_back(Note{false, absl::StrCat("building epoch=", epoch.id, " members=",
                                             absl::StrJoin(names, ","), " reason=", reason)});
  for (size_t i = 0; i < wanted.size(); ++i) {
    message.mutable_epoch()->set_index(static_cast<int>(i));
    actions.push_back(Send{wanted[i], message});
  }
  epochs_.push_back(std::move(epoch));
}

}  // namespace ringserve
