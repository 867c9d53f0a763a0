#include "server/coordinator.h"

#include <algorithm>
#include <atomic>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "proto/status.h"
#include "tests/server/make_hello.h"
#include "tests/support/wait.h"

namespace ringserve {
namespace {

using std::chrono::milliseconds;
using test::kPatience;
using test::MakeHello;
using test::WaitUntil;
using ::testing::HasSubstr;

// A job's end of the contract: remembers what it is told, and whether that came in order.
class Job : public JobListener {
 public:
  struct Seen {
    Grant grant;
    int admitted = 0, started = 0, failed = 0;
    v1::Start start;
    absl::Status status;
    std::vector<int> released;
    bool disorder = false;
  };

  void OnAdmitted(Grant grant) override {
    absl::MutexLock lock(&mu_);
    seen_.disorder |= seen_.admitted + seen_.started + seen_.failed > 0;
    ++seen_.admitted;
    seen_.grant = std::move(grant);
  }
  void OnStart(const v1::Start& start) override {
    absl::MutexLock lock(&mu_);
    seen_.disorder |= seen_.admitted != 1 || seen_.started + seen_.failed > 0;
    ++seen_.started;
    seen_.start = start;
  }
  void OnFailed(const absl::Status& status) override {
    absl::MutexLock lock(&mu_);
    seen_.disorder |= seen_.failed > 0;
    ++seen_.failed;
    seen_.status = status;
  }
  void OnRankReleased(int rank) override {
    absl::MutexLock lock(&mu_);
    seen_.released.push_back(rank);
  }

  Seen seen() {
    absl::MutexLock lock(&mu_);
    return seen_;
  }
  bool AwaitAdmitted() {
    return Await([](const Seen& seen) { return seen.admitted > 0; });
  }
  bool AwaitStarted() {
    return Await([](const Seen& seen) { return seen.started > 0; });
  }
  absl::Status AwaitFailed() {
    if (Await([](const Seen& seen) { return seen.failed > 0; })) return seen().status;
    return absl::OkStatus();
  }
  bool Await(const std::function<bool(const Seen&)>& condition) {
    const auto holds = [&]() ABSL_SHARED_LOCKS_REQUIRED(mu_) { return condition(seen_); };
    absl::MutexLock lock(&mu_);
    return mu_.AwaitWithTimeout(absl::Condition(&holds), absl::FromChrono(kPatience));
  }

 private:
  absl::Mutex mu_;
  Seen seen_ ABSL_GUARDED_BY(mu_);
};

// A worker's end: answers every epoch at once, unless told otherwise, and remembers.
class Member : public MemberListener {
 public:
  Member(Coordinator& coordinator, bool answers) : coordinator_(coordinator), answers_(answers) {}

  void Send(const v1::CoordinatorMessage& message) override {
    Coordinator::MemberId id = 0;
    {
      absl::MutexLock lock(&mu_);
      if (message.has_welcome()) worker_id_ = message.welcome().worker_id();
      if (message.has_epoch()) epochs_.insert(message.epoch().id());
      if (!message.fence_epoch().empty()) epochs_.erase(message.fence_epoch());
      alive_ += message.alive();
      if (message.recall_job() != 0) recalled_.insert(message.recall_job());
      // The epoch may come before Join has returned.
      if (message.has_epoch() && answers_) {
        mu_.Await(absl::Condition(
            +[](Coordinator::MemberId* id) { return *id != 0; }, &id_));
      }
      id = id_;
    }
    if (message.has_epoch() && answers_) Ready(id, message.epoch().id());
  }

  void End(const absl::Status& status) override {
    absl::MutexLock lock(&mu_);
    over_ = true;
    end_ = status;
  }

  void Joined(Coordinator::MemberId id) {
    absl::MutexLock lock(&mu_);
    id_ = id;
  }

  void Ready(Coordinator::MemberId id, const std::string& epoch) {
    v1::WorkerMessage message;
    message.set_epoch_ready(epoch);
    coordinator_.Receive(id, message);
  }
  void Beat(uint64_t job = 0, uint64_t progress = 0, bool computing = false) {
    v1::WorkerMessage message;
    message.mutable_heartbeat()->set_job(job);
    message.mutable_heartbeat()->set_progress(progress);
    message.mutable_heartbeat()->set_computing(computing);
    coordinator_.Receive(id(), message);
  }
  void SayLeaving() {
    v1::WorkerMessage message;
    message.set_leaving(true);
    coordinator_.Receive(id(), message);
  }
  void AnswerRecall(uint64_t job, bool held) {
    v1::WorkerMessage message;
    message.mutable_recalled()->set_job(job);
    message.mutable_recalled()->set_held(held);
    coordinator_.Receive(id(), message);
  }
  void SayBroken(const std::string& epoch) {
    v1::WorkerMessage message;
    message.set_epoch_broken(epoch);
    coordinator_.Receive(id(), message);
  }
  void Lose() { coordinator_.Leave(id()); }

  Coordinator::MemberId id() {
    absl::MutexLock lock(&mu_);
    return id_;
  }
  std::string worker_id() {
    absl::MutexLock lock(&mu_);
    return worker_id_;
  }
  std::set<std::string> epochs() {
    absl::MutexLock lock(&mu_);
    return epochs_;
  }
  bool AwaitRecall(uint64_t job) {
    const auto asked = [&]() ABSL_SHARED_LOCKS_REQUIRED(mu_) { return recalled_.count(job) > 0; };
    absl::MutexLock lock(&mu_);
    return mu_.AwaitWithTimeout(absl::Condition(&asked), absl::FromChrono(kPatience));
  }
  int alive() {
    absl::MutexLock lock(&mu_);
    return alive_;
  }
  bool AwaitEnd() {
    absl::MutexLock lock(&mu_);
    return mu_.AwaitWithTimeout(absl::Condition(&over_), absl::FromChrono(kPatience));
  }
  bool over() {
    absl::MutexLock lock(&mu_);
    return over_;
  }
  absl::Status end() {
    absl::MutexLock lock(&mu_);
    return end_;
  }

 private:
  Coordinator& coordinator_;
  const bool answers_;
  absl::Mutex mu_;
  Coordinator::MemberId id_ ABSL_GUARDED_BY(mu_) = 0;
  std::string worker_id_ ABSL_GUARDED_BY(mu_);
  std::set<std::string> epochs_ ABSL_GUARDED_BY(mu_);
  std::set<uint64_t> recalled_ ABSL_GUARDED_BY(mu_);
  int alive_ ABSL_GUARDED_BY(mu_) = 0;
  bool over_ ABSL_GUARDED_BY(mu_) = false;
  absl::Status end_ ABSL_GUARDED_BY(mu_);
};

v1::AttendHeader Header(int workers, int64_t length = 64) {
  v1::AttendHeader header;
  header.set_request_id("r");
  v1::AttentionSpec& spec = *header.mutable_spec();
  spec.set_batch(1);
  spec.set_q_heads(1);
  spec.set_kv_heads(1);
  spec.set_q_len(length);
  spec.set_kv_len(length);
  spec.set_head_dim(8);
  spec.set_dtype(v1::DTYPE_F32);
  header.mutable_options()->set_workers(workers);
  return header;
}

constexpr milliseconds kInterval(20);

// Nobody is lost for silence, unless a test is about that.
CoordinatorOptions Patient() {
  return {.heartbeat_interval = kInterval,
          .lost_after = std::chrono::hours(1),
          .exchange_deadline = std::chrono::hours(1),
          .version = "9.8.7"};
}

class CoordinatorTest : public ::testing::Test {
 protected:
  void Begin(CoordinatorOptions options = Patient()) {
    coordinator_ = std::make_unique<Coordinator>(std::move(options));
  }

  // No time passes for it but by PassInterval, however late this test's threads are.
  void BeginAtRest(CoordinatorOptions options = Patient()) {
    coordinator_ =
        std::make_unique<Coordinator>(std::move(options), [this] { return now_.load(); });
  }

  // One heartbeat interval, after which `beats` lets so many members be heard. By its return the
  // coordinator has ticked, once: it has shown these as not silent, which it does after the tick.
  void PassInterval(int heard, const std::function<void()>& beats) {
    now_ = now_.load() + kInterval;
    beats();
    ASSERT_TRUE(WaitUntil([&] {
      const v1::GetClusterResponse cluster = coordinator_->Describe();
      return std::count_if(cluster.workers().begin(), cluster.workers().end(),
                           [](const v1::Worker& worker) { return worker.silent_seconds() == 0; }) >=
             heard;
    }));
  }

  std::shared_ptr<Member> Join(bool answers = true, uint64_t memory_bytes = uint64_t{1} << 30) {
    auto member = std::make_shared<Member>(*coordinator_, answers);
    member->Joined(
        coordinator_->Join(MakeHello(absl::StrCat("host:", ++last_port_), memory_bytes), member));
    return member;
  }

  // `count` members, all of them in one epoch.
  std::vector<std::shared_ptr<Member>> JoinAll(int count) {
    std::vector<std::shared_ptr<Member>> members;
    for (int i = 0; i < count; ++i) members.push_back(Join());
    EXPECT_TRUE(AwaitGroup(count));
    return members;
  }

  bool AwaitGroup(int count) {
    return WaitUntil([&] {
      const v1::GetClusterResponse cluster = coordinator_->Describe();
      return coordinator_->group().workers == count && cluster.workers_size() == count &&
             cluster.epoch().empty() == (count == 0);
    });
  }

  std::shared_ptr<Job> Submit(const v1::AttendHeader& header, Coordinator::JobId* id) {
    auto job = std::make_shared<Job>();
    *id = coordinator_->Submit(header, job);
    return job;
  }

  // One that has its input, and runs if it may.
  std::shared_ptr<Job> Run(int workers, Coordinator::JobId* id) {
    std::shared_ptr<Job> job = Submit(Header(workers), id);
    EXPECT_TRUE(job->AwaitAdmitted());
    coordinator_->InputComplete(*id);
    return job;
  }

  std::atomic<Coordinator::Clock::time_point> now_{Coordinator::Clock::now()};
  std::unique_ptr<Coordinator> coordinator_;
  int last_port_ = 0;
};

bool Uses(const Job::Seen& seen, const std::string& worker_id) {
  return std::any_of(seen.grant.ranks.begin(), seen.grant.ranks.end(),
                     [&](const RankPlace& place) { return place.worker_id == worker_id; });
}

TEST_F(CoordinatorTest, TakesAJobFromItsHeaderToItsEnd) {
  Begin();
  JoinAll(2);
  Coordinator::JobId id = 0;
  const std::shared_ptr<Job> job = Submit(Header(2), &id);
  EXPECT_NE(id, 0u);
  ASSERT_TRUE(job->AwaitAdmitted());
  const Grant grant = job->seen().grant;
  ASSERT_EQ(grant.plan->ranks(), 2);
  ASSERT_EQ(grant.ranks.size(), 2u);
  EXPECT_THAT(grant.ranks[0].address, HasSubstr("host:"));
  EXPECT_NE(grant.ranks[0].worker_id, grant.ranks[1].worker_id);
  v1::GetClusterResponse cluster = coordinator_->Describe();
  EXPECT_EQ(job->seen().started, 0) << "its input is not there";

  coordinator_->InputComplete(id);
  ASSERT_TRUE(job->AwaitStarted());
  EXPECT_EQ(job->seen().start.members_size(), 2);
  ASSERT_TRUE(WaitUntil([&] { return coordinator_->Describe().workers(0).job() == id; }));
  cluster = coordinator_->Describe();
  EXPECT_EQ(job->seen().start.epoch(), cluster.epoch());
  EXPECT_EQ(cluster.unfinished_jobs(), 1);
  for (int rank = 0; rank < 2; ++rank) {
    const v1::Worker& worker = cluster.workers(job->seen().start.members(rank));
    EXPECT_EQ(worker.id(), grant.ranks[rank].worker_id);
    EXPECT_EQ(worker.address(), grant.ranks[rank].address);
    EXPECT_EQ(worker.reserved_bytes(), grant.plan->peak_bytes[rank]);
  }
  EXPECT_FALSE(coordinator_->AwaitIdle(milliseconds(1)));

  coordinator_->RankIdle(id, 0);
  coordinator_->RankIdle(id, 1);
  coordinator_->End(id, absl::OkStatus());
  EXPECT_TRUE(coordinator_->AwaitIdle(kPatience));
  ASSERT_TRUE(WaitUntil([&] { return coordinator_->Describe().unfinished_jobs() == 0; }));
  const v1::GetClusterResponse quiet = coordinator_->Describe();
  for (const v1::Worker& worker : quiet.workers()) {
    EXPECT_EQ(worker.reserved_bytes(), 0u);
    EXPECT_EQ(worker.job(), 0u);
  }
  EXPECT_EQ(job->seen().failed, 0);
  EXPECT_FALSE(job->seen().disorder);
  EXPECT_EQ(job.use_count(), 1) << "the listener is let go";
}

TEST_F(CoordinatorTest, DescribesTheCluster) {
  BeginAtRest();
  v1::GetClusterResponse cluster = coordinator_->Describe();
  EXPECT_EQ(cluster.version(), "9.8.7");
  EXPECT_EQ(cluster.epoch(), "");
  EXPECT_EQ(cluster.limits().max_queued_jobs(), 256);
  EXPECT_GT(cluster.measurements().pairs_per_second(), 0);
  EXPECT_EQ(coordinator_->group().workers, 0);
  Join(true, 1'000'000);
  const std::shared_ptr<Member> second = Join(true, 2'000'000);
  ASSERT_TRUE(AwaitGroup(2));
  EXPECT_EQ(coordinator_->group().memory_bytes, 1'000'000u);
  cluster = coordinator_->Describe();
  const v1::Worker& worker = cluster.workers(0);
  EXPECT_EQ(worker.id(), "w1");
  EXPECT_EQ(worker.address(), "host:1");
  EXPECT_EQ(worker.device(), "cpu");
  EXPECT_EQ(worker.threads(), 2);
  EXPECT_EQ(worker.memory_bytes(), 1'000'000u);
  EXPECT_EQ(worker.version(), "1.2.3");
  EXPECT_EQ(worker.pid(), 4711);
  EXPECT_EQ(worker.libtorch(), "2.15.0");
  EXPECT_EQ(worker.device_name(), "");
  EXPECT_EQ(worker.silent_seconds(), 0);
  PassInterval(1, [&] { second->Beat(); });
  cluster = coordinator_->Describe();
  EXPECT_DOUBLE_EQ(cluster.workers(0).silent_seconds(), 0.02);
  EXPECT_EQ(cluster.workers(1).silent_seconds(), 0);
}

TEST_F(CoordinatorTest, DescribesTheGpuOfAWorker) {
  Begin();
  v1::Hello hello = MakeHello("host:1");
  hello.set_device("cuda:3");
  hello.set_device_name("NVIDIA H200");
  hello.set_driver("580.65.06");
  hello.set_cuda("13.2");
  hello.set_nccl("2.30.7");
  auto member = std::make_shared<Member>(*coordinator_, true);
  member->Joined(coordinator_->Join(hello, member));
  ASSERT_TRUE(AwaitGroup(1));
  const v1::Worker worker = coordinator_->Describe().workers(0);
  EXPECT_EQ(worker.device(), "cuda:3");
  EXPECT_EQ(worker.device_name(), "NVIDIA H200");
  EXPECT_EQ(worker.driver(), "580.65.06");
  EXPECT_EQ(worker.cuda(), "13.2");
  EXPECT_EQ(worker.nccl(), "2.30.7");
}

TEST_F(CoordinatorTest, ServesWhileThereAreWorkers) {
  Begin();
  std::atomic<int> now{-1};
  coordinator_->OnServing([&](bool serving) { now = serving; });
  const std::shared_ptr<Member> idle = Join(false);
  ASSERT_TRUE(WaitUntil([&] { return coordinator_->Describe().workers_size() == 1; }));
  EXPECT_EQ(now, -1) << "it has not built its epoch";
  const std::shared_ptr<Member> member = Join();
  ASSERT_TRUE(WaitUntil([&] { return !member->epochs().empty(); }));
  idle->Lose();
  EXPECT_TRUE(WaitUntil([&] { return now == 1; }));
  member->Lose();
  EXPECT_TRUE(WaitUntil([&] { return now == 0; }));
  coordinator_.reset();
}

TEST_F(CoordinatorTest, RefusesWithoutWorkersAndSaysNotToTryAgain) {
  Begin();
  Coordinator::JobId id = 0;
  const absl::Status status = Submit(Header(0), &id)->AwaitFailed();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_FALSE(RetryAfter(status).has_value());
  coordinator_->End(id, status);
  EXPECT_TRUE(coordinator_->AwaitIdle(kPatience));
}

TEST_F(CoordinatorTest, AWorkerTakesNoJobBeforeItHasBuiltAnEpoch) {
  Begin();
  const std::shared_ptr<Member> member = Join(false);
  ASSERT_TRUE(WaitUntil([&] { return !member->epochs().empty(); }));
  Coordinator::JobId id = 0;
  EXPECT_EQ(Submit(Header(1), &id)->AwaitFailed().code(), absl::StatusCode::kUnavailable);
  member->Ready(member->id(), *member->epochs().begin());
  ASSERT_TRUE(AwaitGroup(1));
  EXPECT_TRUE(Submit(Header(1), &id)->AwaitAdmitted());
}

TEST_F(CoordinatorTest, AFullQueueIsPushback) {
  CoordinatorOptions options = Patient();
  options.max_queued_jobs = 0;
  Begin(options);
  Join(true, 240'000);
  ASSERT_TRUE(AwaitGroup(1));
  Coordinator::JobId first = 0, second = 0;
  ASSERT_TRUE(Submit(Header(1, 500), &first)->AwaitAdmitted());
  const absl::Status status = Submit(Header(1, 500), &second)->AwaitFailed();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
  EXPECT_TRUE(RetryAfter(status).has_value());
}

TEST_F(CoordinatorTest, AQueuedJobGetsInWhenAnotherEnds) {
  Begin();
  Join(true, 240'000);
  ASSERT_TRUE(AwaitGroup(1));
  Coordinator::JobId first = 0, second = 0, third = 0;
  ASSERT_TRUE(Submit(Header(1, 500), &first)->AwaitAdmitted());
  const std::shared_ptr<Job> withdrawn = Submit(Header(1, 500), &second);
  const std::shared_ptr<Job> waiting = Submit(Header(1, 500), &third);
  ASSERT_TRUE(WaitUntil([&] { return coordinator_->Describe().queued_jobs() == 2; }));
  coordinator_->End(second, absl::CancelledError(""));
  coordinator_->End(first, absl::OkStatus());
  EXPECT_TRUE(waiting->AwaitAdmitted());
  EXPECT_EQ(withdrawn->seen().admitted, 0);
}

TEST_F(CoordinatorTest, PlansThatTakeLongHoldNoHeartbeatUp) {
  Begin();
  const auto members = JoinAll(1);
  v1::AttendHeader header = Header(1, 100);
  constexpr int kRows = 100'000;
  header.mutable_spec()->set_batch(kRows);
  for (int i = 0; i < kRows; ++i) header.mutable_spec()->add_masks()->set_causal(true);
  // As often as it takes: this thread may find no processor before a plan is made.
  const auto answers_before_the_plan = [&] {
    Coordinator::JobId id = 0;
    const std::shared_ptr<Job> job = Submit(header, &id);
    const int before = members[0]->alive();
    members[0]->Beat();
    EXPECT_TRUE(WaitUntil([&] { return members[0]->alive() > before; }));
    const Job::Seen seen = job->seen();
    return seen.admitted + seen.failed == 0;
  };
  EXPECT_TRUE(WaitUntil(answers_before_the_plan));
}

TEST_F(CoordinatorTest, ALossFailsWhatItConcernsAndNothingElse) {
  Begin();
  const auto members = JoinAll(3);
  // Two ranks each on some of three workers, and one rank on the third.
  Coordinator::JobId running_id = 0, single_id = 0, ready_id = 0, uploading_id = 0;
  const std::shared_ptr<Job> running = Run(2, &running_id);
  ASSERT_TRUE(running->AwaitStarted());
  const std::shared_ptr<Job> single = Run(1, &single_id);
  ASSERT_TRUE(single->AwaitStarted());
  const Job::Seen seen = running->seen();
  const auto lost = std::find_if(members.begin(), members.end(), [&](const auto& member) {
    return Uses(seen, member->worker_id());
  });
  ASSERT_FALSE(Uses(single->seen(), (*lost)->worker_id()));
  const std::shared_ptr<Job> ready = Run(3, &ready_id);
  const std::shared_ptr<Job> uploading = Submit(Header(2), &uploading_id);
  ASSERT_TRUE(uploading->AwaitAdmitted());
  const std::string epoch = seen.start.epoch();
  (*lost)->Lose();

  const absl::Status status = running->AwaitFailed();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_TRUE(RetryAfter(status).has_value());
  EXPECT_EQ(ready->AwaitFailed().code(), absl::StatusCode::kUnavailable) << "its worker is lost";
  ASSERT_TRUE(AwaitGroup(2));
  EXPECT_NE(coordinator_->Describe().epoch(), epoch);
  EXPECT_EQ(single->seen().failed, 0);
  coordinator_->End(running_id, status);
  coordinator_->RankIdle(single_id, 0);
  if (!Uses(uploading->seen(), (*lost)->worker_id())) {
    coordinator_->InputComplete(uploading_id);
    ASSERT_TRUE(uploading->AwaitStarted());
    EXPECT_EQ(uploading->seen().start.epoch(), coordinator_->Describe().epoch());
  } else {
    EXPECT_FALSE(uploading->AwaitFailed().ok());
  }
}

TEST_F(CoordinatorTest, AJobThatIsNotStartedIsBoundToTheNewEpoch) {
  Begin();
  const auto members = JoinAll(3);
  Coordinator::JobId first_id = 0, second_id = 0;
  const std::shared_ptr<Job> first = Run(2, &first_id);
  ASSERT_TRUE(first->AwaitStarted());
  // The same two workers: it waits behind the first. The third is idle and gets a job of its own.
  const std::shared_ptr<Job> other = std::make_shared<Job>();
  const Coordinator::JobId other_id = coordinator_->Submit(Header(1), other);
  ASSERT_TRUE(other->AwaitAdmitted());
  const std::shared_ptr<Job> second = Run(2, &second_id);
  ASSERT_TRUE(second->AwaitAdmitted());
  const auto bystander = std::find_if(members.begin(), members.end(), [&](const auto& member) {
    return !Uses(second->seen(), member->worker_id());
  });
  ASSERT_NE(bystander, members.end());
  (*bystander)->Lose();
  ASSERT_TRUE(AwaitGroup(2));
  EXPECT_FALSE(first->AwaitFailed().ok()) << "it was running in an epoch that is over";
  EXPECT_EQ(second->seen().failed, 0);
  EXPECT_EQ(second->seen().started, 0);
  coordinator_->End(first_id, first->seen().status);
  coordinator_->End(other_id, absl::OkStatus());
  ASSERT_TRUE(second->AwaitStarted());
  EXPECT_EQ(second->seen().start.epoch(), coordinator_->Describe().epoch());
}

TEST_F(CoordinatorTest, AJoinDisturbsNothing) {
  Begin();
  const auto members = JoinAll(2);
  Coordinator::JobId old_id = 0, new_id = 0;
  const std::shared_ptr<Job> old_job = Run(2, &old_id);
  ASSERT_TRUE(old_job->AwaitStarted());
  const std::string old_epoch = old_job->seen().start.epoch();
  Join();
  ASSERT_TRUE(AwaitGroup(3));
  const std::shared_ptr<Job> new_job = Run(1, &new_id);
  ASSERT_TRUE(new_job->AwaitStarted());
  EXPECT_EQ(members[0]->epochs().count(old_epoch), 1u) << "a job still runs in it";
  EXPECT_EQ(old_job->seen().failed, 0);
  coordinator_->RankIdle(old_id, 0);
  coordinator_->RankIdle(old_id, 1);
  coordinator_->End(old_id, absl::OkStatus());
  EXPECT_TRUE(WaitUntil([&] { return members[0]->epochs().count(old_epoch) == 0; }))
      << "the old epoch is never fenced";
  EXPECT_EQ(members[0]->epochs(), std::set<std::string>{coordinator_->Describe().epoch()});
}

TEST_F(CoordinatorTest, ABrokenEpochFailsItsJobsAndIsMadeAnew) {
  Begin();
  const auto members = JoinAll(2);
  Coordinator::JobId id = 0, single_id = 0;
  const std::shared_ptr<Job> job = Run(2, &id);
  ASSERT_TRUE(job->AwaitStarted());
  const std::shared_ptr<Job> single = Run(1, &single_id);
  const std::string epoch = job->seen().start.epoch();
  members[1]->SayBroken(epoch);
  const absl::Status status = job->AwaitFailed();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_TRUE(RetryAfter(status).has_value());
  ASSERT_TRUE(WaitUntil([&] {
    const std::string now = coordinator_->Describe().epoch();
    return !now.empty() && now != epoch;
  }));
  EXPECT_EQ(members[0]->epochs().count(epoch), 0u);
  EXPECT_EQ(single->seen().started, 0) << "its worker is not idle yet";
  coordinator_->RankIdle(id, 0);
  coordinator_->RankIdle(id, 1);
  EXPECT_TRUE(single->AwaitStarted());
  EXPECT_EQ(single->seen().failed, 0);
}

TEST_F(CoordinatorTest, ASilentWorkerIsLost) {
  CoordinatorOptions options = Patient();
  options.lost_after = 5 * kInterval;
  BeginAtRest(options);
  const std::shared_ptr<Member> loud = Join(), silent = Join();
  ASSERT_TRUE(AwaitGroup(2));
  for (int i = 0; i < 5; ++i) PassInterval(1, [&] { loud->Beat(); });
  EXPECT_FALSE(silent->over());
  PassInterval(1, [&] { loud->Beat(); });
  EXPECT_TRUE(silent->over());
  EXPECT_EQ(silent->end().code(), absl::StatusCode::kUnavailable);
  EXPECT_FALSE(loud->over());
  EXPECT_EQ(loud->alive(), 6) << "every heartbeat is answered";
  EXPECT_EQ(silent->alive(), 0);
}

TEST_F(CoordinatorTest, AJobWithoutProgressFailsAndItsEpochIsFenced) {
  CoordinatorOptions options = Patient();
  options.exchange_deadline = 3 * kInterval;
  BeginAtRest(options);
  const auto members = JoinAll(2);
  Coordinator::JobId id = 0;
  const std::shared_ptr<Job> job = Run(2, &id);
  ASSERT_TRUE(job->AwaitStarted());
  const std::string epoch = job->seen().start.epoch();
  // As long as one rank gets on, or computes, nothing happens.
  uint64_t progress = 0;
  for (int i = 0; i < 6; ++i) PassInterval(1, [&] { members[0]->Beat(id, ++progress); });
  const auto beats = [&](bool computing) {
    members[0]->Beat(id, progress, computing);
    members[1]->Beat(id, 1);
  };
  for (int i = 0; i < 6; ++i) PassInterval(2, [&] { beats(true); });
  EXPECT_EQ(job->seen().failed, 0);
  for (int i = 0; i < 4; ++i) PassInterval(2, [&] { beats(false); });
  ASSERT_EQ(job->seen().failed, 1);
  EXPECT_EQ(job->seen().status.code(), absl::StatusCode::kUnavailable);
  EXPECT_TRUE(RetryAfter(job->seen().status).has_value());
  EXPECT_EQ(members[0]->epochs().count(epoch), 0u);
}

TEST_F(CoordinatorTest, AFinishedJobIsNotWatchedWhileItsRowsAreRead) {
  CoordinatorOptions options = Patient();
  options.exchange_deadline = 3 * kInterval;
  BeginAtRest(options);
  const auto members = JoinAll(2);
  Coordinator::JobId slow_id = 0, next_id = 0;
  const std::shared_ptr<Job> slow = Run(2, &slow_id);
  ASSERT_TRUE(slow->AwaitStarted());
  coordinator_->RankIdle(slow_id, 0);
  coordinator_->RankIdle(slow_id, 1);
  const std::shared_ptr<Job> next = Run(2, &next_id);
  ASSERT_TRUE(next->AwaitStarted()) << "the workers are idle";
  for (int i = 0; i < 4; ++i) PassInterval(1, [&] { members[0]->Beat(); });
  ASSERT_EQ(next->seen().failed, 1) << "this one makes no progress";
  coordinator_->RankIdle(next_id, 0);
  coordinator_->RankIdle(next_id, 1);
  coordinator_->End(next_id, next->seen().status);
  EXPECT_TRUE(Run(2, &next_id)->AwaitStarted()) << "in the next epoch";
  EXPECT_EQ(slow->seen().failed, 0) << "its rows are final, whatever became of its epoch";
}

TEST_F(CoordinatorTest, ARankThatWentAstrayIsReleasedByItsWorkerOrItsLoss) {
  Begin();
  const auto members = JoinAll(2);
  Coordinator::JobId id = 0;
  const std::shared_ptr<Job> job = Run(2, &id);
  ASSERT_TRUE(job->AwaitStarted());
  const bool swapped = job->seen().grant.ranks[0].worker_id != members[0]->worker_id();
  coordinator_->RankAstray(id, swapped ? 1 : 0, /*suspect=*/true);
  coordinator_->RankAstray(id, swapped ? 0 : 1, /*suspect=*/true);
  ASSERT_TRUE(members[0]->AwaitRecall(id) && members[1]->AwaitRecall(id));
  members[0]->AnswerRecall(id, true);
  members[0]->AnswerRecall(id, false);
  EXPECT_TRUE(job->Await([](const Job::Seen& seen) { return !seen.released.empty(); }));
  EXPECT_EQ(job->seen().released, std::vector<int>{swapped ? 1 : 0});
  members[1]->Lose();
  EXPECT_TRUE(job->Await([](const Job::Seen& seen) { return seen.released.size() == 2; }));
  coordinator_->End(id, absl::OkStatus());
  EXPECT_TRUE(coordinator_->AwaitIdle(kPatience));
}

TEST_F(CoordinatorTest, AWorkerWhoseCallBrokeGetsNoNewJobBeforeItHasAnswered) {
  Begin();
  const auto members = JoinAll(2);
  Coordinator::JobId broken_id = 0, other_id = 0, next_id = 0, both_id = 0;
  const std::shared_ptr<Job> broken = Run(1, &broken_id);
  const std::shared_ptr<Job> other = Run(1, &other_id);
  ASSERT_TRUE(broken->AwaitStarted() && other->AwaitStarted());
  const std::string suspect = broken->seen().grant.ranks[0].worker_id;
  const auto member = std::find_if(members.begin(), members.end(), [&](const auto& candidate) {
    return candidate->worker_id() == suspect;
  });
  coordinator_->RankAstray(broken_id, 0, /*suspect=*/true);
  coordinator_->End(broken_id, absl::OkStatus());  // it would be the idler of the two
  const std::shared_ptr<Job> next = Submit(Header(1), &next_id);
  ASSERT_TRUE(next->AwaitAdmitted());
  EXPECT_FALSE(Uses(next->seen(), suspect));
  const std::shared_ptr<Job> both = Submit(Header(2), &both_id);
  ASSERT_TRUE(WaitUntil([&] { return coordinator_->Describe().queued_jobs() == 1; }));
  (*member)->Beat();  // may have been under way
  const int alive = (*member)->alive();
  (*member)->Beat();
  ASSERT_TRUE(WaitUntil([&] { return (*member)->alive() > alive; }));
  EXPECT_EQ(both->seen().admitted, 0);
  (*member)->AnswerRecall(broken_id, true);
  EXPECT_TRUE(both->AwaitAdmitted());
  EXPECT_EQ(both->seen().failed, 0);
}

TEST_F(CoordinatorTest, ACallThatWasBrokenFromHereMakesNobodySuspect) {
  Begin();
  const auto members = JoinAll(1);
  Coordinator::JobId id = 0, next_id = 0;
  ASSERT_TRUE(Run(1, &id)->AwaitStarted());
  coordinator_->RankAstray(id, 0, /*suspect=*/false);
  ASSERT_TRUE(members[0]->AwaitRecall(id));
  EXPECT_TRUE(Submit(Header(1), &next_id)->AwaitAdmitted());
}

TEST_F(CoordinatorTest, ALeavingWorkerEndsItsJobsFirst) {
  Begin();
  const auto members = JoinAll(2);
  Coordinator::JobId running_id = 0, waiting_id = 0, next_id = 0, never_id = 0;
  const std::shared_ptr<Job> running = Run(2, &running_id);
  ASSERT_TRUE(running->AwaitStarted());
  const std::shared_ptr<Job> waiting = Run(2, &waiting_id);
  members[1]->SayLeaving();
  ASSERT_TRUE(WaitUntil([&] { return coordinator_->group().workers == 1; }));
  EXPECT_EQ(Submit(Header(2), &never_id)->AwaitFailed().code(), absl::StatusCode::kUnavailable);
  const std::shared_ptr<Job> next = Submit(Header(1), &next_id);
  ASSERT_TRUE(next->AwaitAdmitted());
  EXPECT_EQ(next->seen().grant.ranks[0].worker_id, members[0]->worker_id());

  coordinator_->RankIdle(running_id, 0);
  coordinator_->RankIdle(running_id, 1);
  coordinator_->End(running_id, absl::OkStatus());
  ASSERT_TRUE(waiting->AwaitStarted()) << "it was promised this worker";
  EXPECT_EQ(waiting->seen().start.epoch(), running->seen().start.epoch());
  EXPECT_FALSE(members[1]->over());
  coordinator_->End(waiting_id, absl::OkStatus());
  ASSERT_TRUE(members[1]->AwaitEnd());
  EXPECT_TRUE(members[1]->end().ok()) << members[1]->end();
  EXPECT_TRUE(AwaitGroup(1));
}

TEST_F(CoordinatorTest, AJobWhoseLastEpochIsOverFails) {
  Begin();
  const auto members = JoinAll(2);
  Coordinator::JobId id = 0;
  const std::shared_ptr<Job> job = Submit(Header(2), &id);
  ASSERT_TRUE(job->AwaitAdmitted());
  const std::string epoch = coordinator_->Describe().epoch();
  members[1]->SayLeaving();
  ASSERT_TRUE(WaitUntil([&] { return coordinator_->group().workers == 1; }));
  EXPECT_EQ(job->seen().failed, 0);
  members[0]->SayBroken(epoch);
  const absl::Status status = job->AwaitFailed();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_TRUE(RetryAfter(status).has_value());
}

TEST_F(CoordinatorTest, DrainRefusesTheNewAndFinishesTheOld) {
  Begin();
  JoinAll(1);
  Coordinator::JobId id = 0, late_id = 0;
  const std::shared_ptr<Job> job = Submit(Header(1), &id);
  coordinator_->Drain();
  const absl::Status status = Submit(Header(1), &late_id)->AwaitFailed();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()), HasSubstr("draining"));
  coordinator_->End(late_id, status);
  const std::shared_ptr<Member> late = Join();
  ASSERT_TRUE(late->AwaitEnd());
  EXPECT_EQ(late->end().code(), absl::StatusCode::kUnavailable);
  EXPECT_TRUE(coordinator_->Describe().draining());
  ASSERT_TRUE(job->AwaitAdmitted());
  coordinator_->InputComplete(id);
  ASSERT_TRUE(job->AwaitStarted());
  EXPECT_FALSE(coordinator_->AwaitIdle(milliseconds(10)));
  coordinator_->End(id, absl::OkStatus());
  EXPECT_TRUE(coordinator_->AwaitIdle(kPatience));
}

TEST_F(CoordinatorTest, ItsEndFailsEveryJobAndEndsEveryMembership) {
  Begin();
  const auto members = JoinAll(2);
  Coordinator::JobId ids[3] = {};
  const std::shared_ptr<Job> jobs[] = {Run(2, &ids[0]), Submit(Header(1), &ids[1]),
                                       Submit(Header(2), &ids[2])};
  coordinator_.reset();
  for (const std::shared_ptr<Job>& job : jobs) {
    EXPECT_EQ(job->seen().failed, 1);
    EXPECT_EQ(job->seen().status.code(), absl::StatusCode::kUnavailable);
    EXPECT_EQ(job.use_count(), 1);
  }
  for (const std::shared_ptr<Member>& member : members) {
    EXPECT_TRUE(member->over());
    EXPECT_EQ(member->end().code(), absl::StatusCode::kUnavailable);
  }
}

TEST_F(CoordinatorTest, IgnoresWhatComesLate) {
  Begin();
  JoinAll(1);
  coordinator_->InputComplete(12'345);
  coordinator_->RankIdle(12'345, 0);
  coordinator_->End(12'345, absl::OkStatus());
  coordinator_->Leave(12'345);
  coordinator_->Receive(12'345, {});
  Coordinator::JobId id = 0;
  const std::shared_ptr<Job> job = Run(1, &id);
  ASSERT_TRUE(job->AwaitStarted());
  coordinator_->InputComplete(id);
  coordinator_->RankIdle(id, 0);
  coordinator_->RankIdle(id, 0);
  coordinator_->End(id, absl::OkStatus());
  coordinator_->End(id, absl::OkStatus());
  EXPECT_TRUE(coordinator_->AwaitIdle(kPatience));
}

// Callers on several threads while workers come and go: each job ends, none hangs, nothing is
// left.
TEST_F(CoordinatorTest, EveryJobEndsWhateverHappens) {
  Begin();
  for (int i = 0; i < 3; ++i) Join();
  ASSERT_TRUE(AwaitGroup(3));
  std::atomic<bool> done{false};
  std::atomic<int> finished{0}, hung{0}, disorder{0};
  const auto caller = [&](int seed) {
    std::mt19937 random(seed);
    while (!done) {
      Coordinator::JobId id = 0;
      const std::shared_ptr<Job> job = Submit(Header(static_cast<int>(random() % 4)), &id);
      const auto over = [](const Job::Seen& seen) { return seen.failed > 0; };
      hung += !job->Await([&](const Job::Seen& seen) { return seen.admitted > 0 || over(seen); });
      if (random() % 10 > 0) coordinator_->InputComplete(id);
      if (random() % 10 > 0 && !over(job->seen())) {
        coordinator_->InputComplete(id);
        hung += !job->Await([&](const Job::Seen& seen) { return seen.started > 0 || over(seen); });
        const int ranks = static_cast<int>(job->seen().grant.ranks.size());
        for (int rank = 0; rank < ranks; ++rank) coordinator_->RankIdle(id, rank);
      }
      finished += !over(job->seen());
      disorder += job->seen().disorder;
      coordinator_->End(id, absl::OkStatus());
    }
  };
  std::vector<std::thread> callers;
  for (int seed = 0; seed < 4; ++seed) callers.emplace_back(caller, seed);
  std::mt19937 random(99);
  std::vector<std::shared_ptr<Member>> members;
  for (int round = 0; round < 60; ++round) {
    while (members.size() < 3) members.push_back(Join());
    EXPECT_TRUE(WaitUntil(
        [&] { return members.back()->epochs().count(coordinator_->Describe().epoch()) > 0; }));
    // What comes now meets one running ring at least: this.
    Coordinator::JobId id = 0;
    const std::shared_ptr<Job> job = Run(2, &id);
    EXPECT_TRUE(job->AwaitStarted());
    const int before = finished;
    const auto victim = members.begin() + random() % 3;
    const int fate = random() % 3;
    if (fate == 0) {
      (*victim)->SayLeaving();
    } else {
      if (fate == 1) (*victim)->SayBroken(job->seen().start.epoch());
      (*victim)->Lose();
      EXPECT_FALSE(job->AwaitFailed().ok());
    }
    members.erase(victim);
    coordinator_->End(id, absl::OkStatus());
    EXPECT_TRUE(WaitUntil([&] { return finished > before; })) << "nothing gets on";
  }
  done = true;
  for (std::thread& thread : callers) thread.join();
  EXPECT_EQ(hung, 0);
  EXPECT_EQ(disorder, 0);
  EXPECT_TRUE(coordinator_->AwaitIdle(kPatience));
  ASSERT_TRUE(WaitUntil([&] { return coordinator_->Describe().unfinished_jobs() == 0; }));
  EXPECT_EQ(coordinator_->Describe().queued_jobs(), 0);
  const v1::GetClusterResponse quiet = coordinator_->Describe();
  for (const v1::Worker& worker : quiet.workers()) {
    EXPECT_EQ(worker.reserved_bytes(), 0u);
    EXPECT_EQ(worker.job(), 0u);
  }
}

}  // namespace
}  // namespace ringserve
