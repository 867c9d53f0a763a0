#include "worker/join_client.h"

#include <algorithm>
#include <set>
#include <utility>

#include <grpcpp/create_channel.h>
#include <spdlog/spdlog.h>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "proto/transport.h"

namespace ringserve {

using std::chrono::milliseconds;

namespace {

constexpr milliseconds kFirstRetry{100};

}  // namespace

struct JoinClient::Stay {
  std::shared_ptr<JoinStream> stream;
  std::string worker_id;  // empty until welcome
  milliseconds interval{0};
  milliseconds patience{0};  // with a silent coordinator
  milliseconds lateness{0};  // of this thread's own ticks, from where on it judges nobody
  Clock::time_point next_tick;
  Clock::time_point last_heard;
  Clock::time_point leave_by = Clock::time_point::max();
  std::set<uint64_t> recalled;  // jobs of which something is still here
  absl::Status verdict;         // why this side has ended the call

  void End(absl::Status why) {
    if (!verdict.ok()) return;
    verdict = std::move(why);
    stream->Cancel();
  }
};

JoinClient::JoinClient(JoinOptions options, Seats& seats, Hooks hooks)
    : options_(std::move(options)),
      seats_(seats),
      hooks_(std::move(hooks)),
      thread_([this] { Loop(); }) {}

void JoinClient::Stop() {
  if (!thread_.joinable()) return;
  inbox_->Give(Stopping{});
  thread_.join();
}

void JoinClient::EpochBroken(const std::string& epoch, const absl::Status& why) {
  inbox_->Give(Broken{epoch, why});
}

void JoinClient::Leave() { inbox_->Give(Leaving{}); }

bool JoinClient::WaitUntilLeft(milliseconds timeout) {
  absl::MutexLock lock(&mu_);
  return mu_.AwaitWithTimeout(absl::Condition(&left_), absl::FromChrono(timeout));
}

absl::Status JoinClient::farewell() const {
  absl::MutexLock lock(&mu_);
  return farewell_;
}

std::optional<JoinClient::Event> JoinClient::Next(Clock::time_point until) {
  Inbox& inbox = *inbox_;
  const auto there = [&inbox]()
                         ABSL_SHARED_LOCKS_REQUIRED(inbox.mu) { return !inbox.events.empty(); };
  const absl::Duration left = absl::FromChrono(until - Clock::now());
  absl::MutexLock lock(&inbox.mu);
  if (!inbox.mu.AwaitWithTimeout(absl::Condition(&there), std::max(left, absl::ZeroDuration()))) {
    return std::nullopt;
  }
  Event event = std::move(inbox.events.front());
  inbox.events.pop_front();
  return event;
}

void JoinClient::Loop() {
  milliseconds retry = kFirstRetry;
  std::string last_reason;
  while (!Going()) {
    const absl::Status ended = StayJoined();
    const bool was_member = !seats_.worker_id().empty();
    hooks_.on_joined(false);
    seats_.Leave(
        absl::UnavailableError(absl::StrCat("the worker's membership ended: ", ended.ToString())));
    hooks_.drop_all(absl::UnavailableError(
        absl::StrCat("the worker is no member of the group: ", ended.ToString())));
    if (Going()) {
      spdlog::info("left coordinator={} status={}", options_.coordinator, ended.ToString());
      absl::MutexLock lock(&mu_);
      if (was_member) farewell_ = ended;
      break;
    }
    if (was_member) retry = kFirstRetry;
    // A coordinator that stays away is mentioned once.
    if (was_member || ended.ToString() != last_reason) {
      spdlog::warn("not_joined coordinator={} reason={}", options_.coordinator, ended.ToString());
    }
    last_reason = ended.ToString();
    const Clock::time_point until = Clock::now() + retry;
    while (!Going() && Clock::now() < until) {
      const std::optional<Event> event = Next(until);
      if (!event.has_value()) break;
      leaving_ |= std::holds_alternative<Leaving>(*event);
      stopping_ |= std::holds_alternative<Stopping>(*event);
    }
    retry = std::min(2 * retry, options_.slowest_retry);
  }
  absl::MutexLock lock(&mu_);
  left_ = true;
}

absl::Status JoinClient::StayJoined() {
  // A new channel each time: an old one may hang on a connection to a machine that is no more.
  const std::shared_ptr<grpc::Channel> channel =
      grpc::CreateCustomChannel(options_.coordinator, options_.credentials, MakeChannelArguments());
  v1::WorkerMessage hello;
  *hello.mutable_hello() = options_.hello;
  Stay stay;
  stay.next_tick = Clock::now() + options_.welcome_deadline;
  stay.stream = JoinStream::Open(
      v1::Cluster::NewStub(channel), hello,
      {.on_message = [this](v1::CoordinatorMessage message) { inbox_->Give(std::move(message)); },
       .on_end = [this](const absl::Status& status) { inbox_->Give(Ended{status}); }});
  for (;;) {
    const std::optional<Event> event = Next(std::min(stay.next_tick, stay.leave_by));
    if (!event.has_value()) {
      Tick(stay);
    } else if (const auto* ended = std::get_if<Ended>(&*event)) {
      if (!stay.verdict.ok()) return stay.verdict;
      if (ended->status.ok() && !leaving_) {
        return absl::UnavailableError("the coordinator ended the membership");
      }
      return ended->status;
    } else if (const auto* message = std::get_if<v1::CoordinatorMessage>(&*event)) {
      Obey(*message, stay);
    } else if (const auto* broken = std::get_if<Broken>(&*event)) {
      Break(*broken, stay);
    } else if (const auto* met = std::get_if<Met>(&*event)) {
      Tell(*met, stay);
    } else if (const auto* built = std::get_if<Built>(&*event)) {
      Tell(*built, stay);
    } else if (std::holds_alternative<Stopping>(*event)) {
      stopping_ = true;
      stay.End(absl::CancelledError("the worker stops"));
    } else if (!std::exchange(leaving_, true)) {
      v1::WorkerMessage leaving;
      leaving.set_leaving(true);
      stay.stream->Send(std::move(leaving));
      stay.leave_by = Clock::now() + options_.drain;
      if (stay.worker_id.empty()) stay.End(absl::CancelledError("left before it had joined"));
    }
  }
}

void JoinClient::Obey(const v1::CoordinatorMessage& message, Stay& stay) {
  stay.last_heard = Clock::now();
  if (message.has_welcome()) {
    const v1::Welcome& welcome = message.welcome();
    stay.worker_id = welcome.worker_id();
    stay.interval = milliseconds(std::max<int64_t>(1, welcome.heartbeat_interval_ms()));
    stay.lateness = milliseconds(std::max<int64_t>(1, welcome.lost_after_ms()));
    stay.patience = 3 * stay.lateness;
    stay.next_tick = Clock::now() + stay.interval;
    seats_.Join(welcome.worker_id());
    hooks_.on_joined(true);
    spdlog::info("joined coordinator={} worker={} heartbeat_ms={} lost_after_ms={}",
                 options_.coordinator, welcome.worker_id(), welcome.heartbeat_interval_ms(),
                 welcome.lost_after_ms());
  }
  if (stay.worker_id.empty()) {
    stay.End(absl::FailedPreconditionError("the coordinator's first message is not `welcome`"));
    return;
  }
  if (message.has_epoch()) Enter(message.epoch(), stay);
  if (message.has_rendezvous()) {
    seats_.Meet(message.rendezvous().epoch(), message.rendezvous().token());
  }
  if (!message.fence_epoch().empty()) {
    const absl::Status why =
        absl::UnavailableError(absl::StrCat("epoch ", message.fence_epoch(), " was fenced"));
    if (seats_.Fence(message.fence_epoch(), why)) {
      spdlog::info("fenced epoch={}", message.fence_epoch());
      hooks_.drop_epoch(message.fence_epoch(), why);
    }
  }
  if (message.recall_job() != 0) {
    const bool held = Recall(message.recall_job(), stay);
    spdlog::info("recalled job={} held={}", message.recall_job(), held);
    if (held) stay.recalled.insert(message.recall_job());
  }
}

void JoinClient::Enter(const v1::Epoch& epoch, Stay& stay) {
  const std::string& id = epoch.id();
  const absl::Status entered =
      seats_.Enter(epoch, {.meet =
                               [inbox = inbox_, id](const std::string& token) {
                                 inbox->Give(Met{id, token});
                               },
                           .built =
                               [inbox = inbox_, id](const absl::Status& status) {
                                 inbox->Give(Built{id, status});
                               }});
  spdlog::info("epoch={} members={} index={} status={}", id, epoch.members_size(), epoch.index(),
               entered.ToString());
  if (entered.ok()) return;
  v1::WorkerMessage message;
  message.set_epoch_broken(id);
  stay.stream->Send(std::move(message));
}

void JoinClient::Tell(const Met& met, Stay& stay) {
  v1::WorkerMessage message;
  message.mutable_rendezvous()->set_epoch(met.epoch);
  message.mutable_rendezvous()->set_token(met.token);
  if (seats_.Find(met.epoch).ok()) stay.stream->Send(std::move(message));
}

void JoinClient::Tell(const Built& built, Stay& stay) {
  if (!built.status.ok()) return Break({built.epoch, built.status}, stay);
  v1::WorkerMessage message;
  message.set_epoch_ready(built.epoch);
  if (seats_.Find(built.epoch).ok()) stay.stream->Send(std::move(message));
}

bool JoinClient::Recall(uint64_t job, Stay& stay) {
  const bool held =
      hooks_.recall(job, absl::CancelledError("the connection to the coordinator broke"));
  // That it still is was said before.
  if (held && stay.recalled.contains(job)) return true;
  v1::WorkerMessage message;
  message.mutable_recalled()->set_job(job);
  message.mutable_recalled()->set_held(held);
  stay.stream->Send(std::move(message));
  return held;
}

void JoinClient::Break(const Broken& broken, Stay& stay) {
  // An epoch that was fenced, or came with an earlier membership, is nobody's business any more.
  if (!seats_.Fence(broken.epoch, broken.why)) return;
  spdlog::warn("broken epoch={} reason={}", broken.epoch, broken.why.ToString());
  hooks_.drop_epoch(broken.epoch, broken.why);
  v1::WorkerMessage message;
  message.set_epoch_broken(broken.epoch);
  stay.stream->Send(std::move(message));
}

void JoinClient::Tick(Stay& stay) {
  const Clock::time_point now = Clock::now();
  if (now >= stay.leave_by) {
    stay.End(absl::DeadlineExceededError("unfinished jobs outlasted the time to drain"));
    stay.leave_by = Clock::time_point::max();
    return;
  }
  if (stay.worker_id.empty()) {
    stay.End(absl::DeadlineExceededError(absl::StrCat("no welcome from the coordinator within ",
                                                      options_.welcome_deadline.count(), " ms")));
    stay.next_tick = Clock::time_point::max();  // the end of the call is next
    return;
  }
  // This process was stopped: what it did not hear meanwhile proves nothing.
  if (now - stay.next_tick > stay.lateness) stay.last_heard = now;
  if (now - stay.last_heard > stay.patience) {
    stay.End(absl::UnavailableError(
        absl::StrCat("the coordinator was silent for more than ", stay.patience.count(), " ms")));
    stay.next_tick = Clock::time_point::max();
    return;
  }
  std::erase_if(stay.recalled, [&](uint64_t job) { return !Recall(job, stay); });
  v1::WorkerMessage message;
  *message.mutable_heartbeat() = hooks_.progress();
  stay.stream->Send(std::move(message));
  stay.next_tick = now + stay.interval;
}

}  // namespace ringserve
