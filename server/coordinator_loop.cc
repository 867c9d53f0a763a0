#include "server/coordinator_loop.h"

#include <algorithm>
#include <random>

#include <spdlog/spdlog.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/time.h"
#include "proto/status.h"

namespace ringserve {

using std::chrono::milliseconds;

namespace {

// By then the next epoch stands.
constexpr milliseconds kRetryAfterLoss{100};
// By then somebody's turn has come.
constexpr milliseconds kRetryAfterFull{500};

std::string RandomIncarnation() {
  std::random_device random;
  const uint64_t high = random(), low = random();
  return absl::StrCat(absl::Hex(high << 32 | low, absl::kZeroPad16));
}

template <typename... Visitors>
struct Overloaded : Visitors... {
  using Visitors::operator()...;
};
template <typename... Visitors>
Overloaded(Visitors...) -> Overloaded<Visitors...>;

}  // namespace

Coordinator::Loop::Loop(CoordinatorOptions options, std::function<Clock::time_point()> now)
    : options_(std::move(options)),
      now_(std::move(now)),
      membership_({.incarnation = RandomIncarnation(),
                   .heartbeat_interval = options_.heartbeat_interval,
                   .lost_after = options_.lost_after,
                   .build_deadline = options_.exchange_deadline}),
      admission_({.max_queued_jobs = options_.max_queued_jobs}),
      watch_(options_.exchange_deadline),
      planner_(options_.measurements, [this](const Admission::PlanRequest& request,
                                             absl::StatusOr<std::shared_ptr<const Plan>> plan) {
        Post([this, request, plan = std::move(plan)] { Planned(request, plan); });
      }) {
  Publish();
  thread_ = std::thread([this] { Run(); });
}

Coordinator::Loop::~Loop() {
  {
    absl::MutexLock lock(&mu_);
    stopping_ = true;
  }
  thread_.join();
}

void Coordinator::Loop::Post(std::function<void()> event) {
  absl::MutexLock lock(&mu_);
  events_.push_back(std::move(event));
}

void Coordinator::Loop::CountJob() {
  absl::MutexLock lock(&mu_);
  ++unfinished_;
}

bool Coordinator::Loop::AwaitIdle(milliseconds timeout) {
  const auto idle = [this]() ABSL_SHARED_LOCKS_REQUIRED(mu_) { return unfinished_ == 0; };
  absl::MutexLock lock(&mu_);
  return mu_.AwaitWithTimeout(absl::Condition(&idle), absl::FromChrono(timeout));
}

v1::GetClusterResponse Coordinator::Loop::Describe() const {
  absl::MutexLock lock(&mu_);
  v1::GetClusterResponse cluster = snapshot_.cluster;
  const Clock::time_point now = now_();
  for (int i = 0; i < cluster.workers_size(); ++i) {
    const std::chrono::duration<double> silent = now - snapshot_.heard[i];
    cluster.mutable_workers(i)->set_silent_seconds(silent.count());
  }
  return cluster;
}

Coordinator::Totals Coordinator::Loop::totals() const {
  absl::MutexLock lock(&mu_);
  return snapshot_.totals;
}

Group Coordinator::Loop::group() const {
  absl::MutexLock lock(&mu_);
  return snapshot_.group;
}

void Coordinator::Loop::Run() {
  const auto something = [this]() ABSL_SHARED_LOCKS_REQUIRED(mu_) {
    return stopping_ || !events_.empty();
  };
  Clock::time_point next_tick = now_();
  for (;;) {
    std::vector<std::function<void()>> events;
    bool stopping = false;
    {
      const absl::Duration left = absl::FromChrono(next_tick - now_());
      absl::MutexLock lock(&mu_);
      mu_.AwaitWithTimeout(absl::Condition(&something), std::max(left, absl::ZeroDuration()));
      events.swap(events_);
      stopping = stopping_;
    }
    for (const std::function<void()>& event : events) event();
    if (now_() >= next_tick) {
      Tick();
      next_tick = now_() + options_.heartbeat_interval;
    }
    Settle();
    if (stopping) break;
  }
  Stop();
}

void Coordinator::Loop::Tick() {
  Do(membership_.Tick(now_()));
  for (const JobId id : watch_.Advance(membership_.counted())) {
    const auto job = jobs_.find(id);
    if (job == jobs_.end() || job->second.over) continue;
    const std::string reason =
        absl::StrCat("no rank of job ", id, " has made progress for more than ",
                     options_.exchange_deadline.count(), " ms");
    const std::string epoch = order_.EpochOf(id);
    Fail(id, WithRetryAfter(absl::UnavailableError(reason), kRetryAfterLoss));
    if (!epoch.empty()) Do(membership_.BreakEpoch(epoch, reason));
  }
}

// What follows from the events since the last time.
void Coordinator::Loop::Settle() {
  ReleaseEpochs();
  for (const JobId id : order_.AwaitingEpoch()) {
    if (membership_.MayBind(order_.WorkersOf(id))) continue;
    Fail(id, WithRetryAfter(absl::UnavailableError("the last epoch of its workers is over"),
                            kRetryAfterLoss));
  }
  Start(order_.Start(
      [this](const std::vector<std::string>& workers) { return membership_.Bind(workers); }));
  const bool serving = !usable_.empty() && !draining_;
  if (serving != totals_.serving) {
    totals_.serving = serving;
    spdlog::info("serving={} workers={} draining={}", serving, usable_.size(), draining_);
    if (on_serving_) on_serving_(serving);
  }
  Publish();
}

void Coordinator::Loop::ReleaseEpochs() {
  for (const std::string& epoch : membership_.draining()) {
    const auto binds = [&](JobId id) {
      const std::optional<v1::Start> start = membership_.Bind(order_.WorkersOf(id));
      return start.has_value() && start->epoch() == epoch;
    };
    const std::vector<JobId> waiting = order_.AwaitingEpoch();
    if (order_.Uses(epoch) || std::any_of(waiting.begin(), waiting.end(), binds)) continue;
    Do(membership_.Drained(epoch));
  }
  for (const std::string& worker : membership_.parting()) {
    if (!order_.Occupies(worker)) Do(membership_.Idle(worker));
  }
}

std::vector<Admission::Capacity> Coordinator::Loop::Usable() const {
  std::vector<Admission::Capacity> usable;
  for (const Membership::Member& member : membership_.members()) {
    if (member.leaving || !member.built) continue;
    usable.push_back(
        {member.worker_id, member.hello.memory_bytes(), !member.suspected_for.empty()});
  }
  return usable;
}

void Coordinator::Loop::SetWorkers() {
  std::vector<Admission::Capacity> usable = Usable();
  if (usable == usable_) return;
  usable_ = std::move(usable);
  Do(admission_.SetWorkers(usable_));
}

void Coordinator::Loop::Stop() {
  const absl::Status status = absl::UnavailableError("the coordinator shuts down");
  std::vector<JobId> ids;
  for (const auto& [id, job] : jobs_) ids.push_back(id);
  for (const JobId id : ids) Fail(id, status);
  Do(membership_.EndAll(status));
}

void Coordinator::Loop::Submit(JobId id, v1::AttendHeader header,
                               std::shared_ptr<JobListener> listener, bool backward) {
  jobs_[id] = {.request_id = header.request_id(), .listener = std::move(listener)};
  if (draining_) {
    Fail(id, absl::UnavailableError("this server is draining: it takes no new requests"));
    return;
  }
  spdlog::debug("state=queued job={} request={}", id, header.request_id());
  auto spec = std::make_shared<v1::AttentionSpec>(std::move(*header.mutable_spec()));
  Do(admission_.Submit(id, std::move(spec), header.options(),
                       {.backward = backward, .d_lse = header.d_lse()}));
}

void Coordinator::Loop::Planned(const Admission::PlanRequest& request,
                                const absl::StatusOr<std::shared_ptr<const Plan>>& plan) {
  Do(admission_.Planned(request.job, request.generation, plan));
}

void Coordinator::Loop::InputComplete(JobId id) {
  const auto job = jobs_.find(id);
  if (job == jobs_.end() || job->second.over) return;
  spdlog::debug("state=ready job={} request={}", id, job->second.request_id);
  order_.Ready(id);
}

void Coordinator::Loop::RankIdle(JobId id, int rank) {
  if (order_.RankIdle(id, rank)) watch_.Forget(id);
}

void Coordinator::Loop::RankAstray(JobId id, int rank, bool suspect) {
  if (jobs_.count(id) == 0) return;
  Do(membership_.Recall(order_.WorkersOf(id).at(rank), id, suspect));
}

void Coordinator::Loop::End(JobId id, const absl::Status& outcome) {
  const auto job = jobs_.find(id);
  if (job == jobs_.end()) return;
  spdlog::debug("state=ended job={} request={} outcome={}", id, job->second.request_id,
                outcome.ToString());
  const std::shared_ptr<JobListener> listener = std::move(job->second.listener);
  jobs_.erase(job);
  watch_.Forget(id);
  order_.End(id);
  planner_.Forget(id);
  Do(admission_.End(id));
  absl::MutexLock lock(&mu_);
  --unfinished_;
}

void Coordinator::Loop::Join(MemberId id, const v1::Hello& hello,
                             std::shared_ptr<MemberListener> listener) {
  if (draining_) {
    listener->End(absl::UnavailableError("this coordinator is draining: it takes no new workers"));
    return;
  }
  members_[id] = std::move(listener);
  heard_[id] = now_();
  Do(membership_.Join(id, hello));
  totals_.joined += members_.count(id);
}

void Coordinator::Loop::Receive(MemberId id, const v1::WorkerMessage& message) {
  const auto member = std::find_if(membership_.members().begin(), membership_.members().end(),
                                   [&](const auto& candidate) { return candidate.id == id; });
  if (member == membership_.members().end()) return;
  heard_[id] = now_();
  if (message.has_heartbeat()) watch_.Report(member->worker_id, message.heartbeat());
  Do(membership_.Receive(id, message));
}

void Coordinator::Loop::Leave(MemberId id) { Do(membership_.CallEnded(id)); }

void Coordinator::Loop::Drain() {
  if (std::exchange(draining_, true)) return;
  spdlog::info("draining jobs={}", jobs_.size());
}

void Coordinator::Loop::OnServing(std::function<void(bool)> listener) {
  on_serving_ = std::move(listener);
  if (totals_.serving) on_serving_(true);
}

void Coordinator::Loop::Do(Membership::Actions actions) {
  for (Membership::Action& action : actions) {
    std::visit(
        Overloaded{
            [&](const Membership::Send& send) {
              const auto member = members_.find(send.member);
              if (member != members_.end()) member->second->Send(send.message);
            },
            [&](const Membership::End& end) {
              const auto member = members_.find(end.member);
              if (member == members_.end()) return;
              const std::shared_ptr<MemberListener> listener = std::move(member->second);
              members_.erase(member);
              heard_.erase(end.member);
              listener->End(end.status);
            },
            [&](const Membership::WorkerGone& gone) {
              totals_.lost += gone.lost;
              watch_.ForgetWorker(gone.worker_id);
              for (const JobId id : order_.Involving(gone.worker_id)) {
                Fail(id, WithRetryAfter(absl::UnavailableError(absl::StrCat(
                                            "worker ", gone.worker_id,
                                            " was lost during the job: ", gone.reason)),
                                        kRetryAfterLoss));
              }
            },
            [&](const Membership::EpochOver& over) {
              for (const JobId id : order_.RunningIn(over.epoch)) {
                Fail(id, WithRetryAfter(
                             absl::UnavailableError(absl::StrCat(
                                 "epoch ", over.epoch, " ended under the job: ", over.reason)),
                             kRetryAfterLoss));
              }
            },
            [&](const Membership::Released& released) {
              const auto job = jobs_.find(released.job);
              if (job == jobs_.end()) return;
              const std::vector<std::string>& workers = order_.WorkersOf(released.job);
              const auto rank = std::find(workers.begin(), workers.end(), released.worker_id);
              job->second.listener->OnRankReleased(static_cast<int>(rank - workers.begin()));
            },
            [&](const Membership::Note& note) {
              spdlog::log(note.warning ? spdlog::level::warn : spdlog::level::info, "{}",
                          note.text);
            }},
        action);
  }
  SetWorkers();  // before anything is admitted to a worker that is no more
}

void Coordinator::Loop::Do(Admission::Decisions decisions) {
  for (Admission::PlanRequest& request : decisions.to_plan) planner_.Ask(std::move(request));
  for (const Admission::Refused& refused : decisions.refused) {
    if (!refused.retry) {
      Fail(refused.job, refused.status);
      continue;
    }
    const bool full = absl::IsResourceExhausted(refused.status);
    Fail(refused.job, WithRetryAfter(refused.status, full ? kRetryAfterFull : kRetryAfterLoss));
  }
  for (const Admission::Admitted& admitted : decisions.admitted) {
    Grant grant{.plan = admitted.plan};
    for (const std::string& worker : admitted.workers) {
      const auto member =
          std::find_if(membership_.members().begin(), membership_.members().end(),
                       [&](const auto& candidate) { return candidate.worker_id == worker; });
      grant.ranks.push_back({worker, member->hello.address()});
    }
    const Job& job = jobs_.at(admitted.job);
    spdlog::debug("state=reserved job={} request={} workers={} reason={}", admitted.job,
                  job.request_id, absl::StrJoin(admitted.workers, ","), admitted.plan->reason);
    order_.Admit(admitted.job, admitted.workers);
    job.listener->OnAdmitted(std::move(grant));
  }
}

void Coordinator::Loop::Start(const std::vector<RunOrder::Started>& started) {
  for (const auto& [id, start] : started) {
    const Job& job = jobs_.at(id);
    spdlog::debug("state=running job={} request={} epoch={} members={}", id, job.request_id,
                  start.epoch(), absl::StrJoin(start.members(), ","));
    watch_.Watch(id);
    job.listener->OnStart(start);
  }
}

void Coordinator::Loop::Fail(JobId id, const absl::Status& status) {
  const auto job = jobs_.find(id);
  if (job == jobs_.end() || job->second.over) return;
  spdlog::warn("failed job={} request={} reason={}", id, job->second.request_id, status.ToString());
  job->second.over = true;
  watch_.Forget(id);
  order_.Fail(id);
  job->second.listener->OnFailed(status);
}

void Coordinator::Loop::Publish() {
  Snapshot snapshot;
  v1::GetClusterResponse& cluster = snapshot.cluster;
  cluster.set_version(options_.version);
  cluster.set_epoch(membership_.current_epoch());
  cluster.set_draining(draining_);
  for (const Membership::Member& member : membership_.members()) {
    v1::Worker& worker = *cluster.add_workers();
    worker.set_id(member.worker_id);
    worker.set_address(member.hello.address());
    worker.set_device(member.hello.device());
    worker.set_threads(member.hello.threads());
    worker.set_memory_bytes(member.hello.memory_bytes());
    worker.set_reserved_bytes(admission_.Reserved(member.worker_id));
    worker.set_job(order_.RunningOn(member.worker_id));
    worker.set_version(member.hello.version());
    worker.set_pid(member.hello.pid());
    worker.set_libtorch(member.hello.libtorch());
    worker.set_device_name(member.hello.device_name());
    worker.set_driver(member.hello.driver());
    worker.set_cuda(member.hello.cuda());
    worker.set_nccl(member.hello.nccl());
    snapshot.heard.push_back(heard_.at(member.id));
  }
  cluster.set_queued_jobs(admission_.queued());
  cluster.set_unfinished_jobs(admission_.admitted());
  cluster.mutable_limits()->set_max_queued_jobs(options_.max_queued_jobs);
  *cluster.mutable_measurements() = options_.measurements;
  snapshot.group = admission_.group();
  if (!cluster.epoch().empty() && cluster.epoch() != counted_epoch_) {
    counted_epoch_ = cluster.epoch();
    ++totals_.epochs;
  }
  snapshot.totals = totals_;
  absl::MutexLock lock(&mu_);
  snapshot_ = std::move(snapshot);
}

}  // namespace ringserve
