// After faults: what was not hit goes on, what was lost comes back, and nothing is left behind.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <future>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "proto/status.h"
#include "tests/integration/held_job.h"
#include "tests/integration/process_facts.h"
#include "tests/support/cluster.h"
#include "tests/support/random.h"

namespace ringserve::test {
namespace {

using std::chrono::milliseconds;

constexpr int kKillRounds = kSlowness == 1 ? 50 : 6;
constexpr milliseconds kChaos{6'000};

class RecoveryTest : public ::testing::Test {
 protected:
  void Start(ClusterOptions options = HeldClusterOptions()) {
    SmallRequest();
    cluster_ = std::make_unique<Cluster>(std::move(options));
  }
  void TearDown() override {
    if (HasFailure() && cluster_ != nullptr) ADD_FAILURE() << cluster_->Logs();
  }

  // One answer of `workers`, in one attempt.
  void ExpectAnswer(int workers) {
    const absl::StatusOr<Answer> answer = SmallRequest().AskOf(
        cluster_->client(), SmallRequest().Named("check", workers), {.max_attempts = 1});
    ASSERT_TRUE(answer.ok()) << answer.status();
    EXPECT_EQ(SmallRequest().WhatIsWrong(*answer), "");
  }

  std::future<absl::StatusOr<Answer>> Ask(const Request& request, const v1::AttendHeader& header) {
    return std::async(std::launch::async, [&request, header, this] {
      return request.AskOf(cluster_->client(), header);
    });
  }

  // The worker that has no part in a job of two; -1: it cannot be told.
  int Outsider(const std::string& request_id) {
    const int first = WorkerOf(*cluster_, request_id, 0),
              second = WorkerOf(*cluster_, request_id, 1);
    return first < 0 || second < 0 ? -1 : 3 - first - second;
  }

  std::unique_ptr<Cluster> cluster_;
};

TEST_F(RecoveryTest, ACallSucceedsAsLongAsOneWorkerRemains) {
  Start();
  const Request& request = RequestFor(Moment::kStep0);
  auto answer = Ask(request, request.Named("shrinking", 0));
  int alive = 3;
  std::string id = "shrinking";
  for (int kill = 0; kill < 2; ++kill) {
    // Of the attempt that runs on all that are left.
    const int victim = WorkerOf(*cluster_, id, alive - 1);
    ASSERT_GE(victim, 0) << "the planner left a worker out";
    ASSERT_TRUE(cluster_->worker(victim).WaitForLogLine({"step=0/", absl::StrCat("request=", id)}));
    cluster_->worker(victim).Kill();
    --alive;
    id = absl::StrCat("shrinking-retry", kill + 1);
  }
  const absl::StatusOr<Answer> got = answer.get();
  ASSERT_TRUE(got.ok()) << got.status();
  EXPECT_EQ(request.WhatIsWrong(*got), "");
  EXPECT_EQ(got->statistics.plan().workers(), 1);
  EXPECT_EQ(got->attempts, 3);
  EXPECT_TRUE(cluster_->AwaitIdle());
}

TEST_F(RecoveryTest, JobsGoOnThatDoNotInvolveTheLostWorker) {
  Start();
  for (const Moment moment : {Moment::kReserved, Moment::kUploading, Moment::kReady}) {
    // A ready job waits behind others on the same two workers, which are running when the epoch
    // ends: those are lost, it is not.
    HeldJob job(*cluster_, moment, 2);
    ASSERT_EQ(job.Await(), "");
    const int outsider = Outsider(job.id());
    ASSERT_GE(outsider, 0);
    cluster_->worker(outsider).Kill();
    ASSERT_TRUE(cluster_->AwaitWorkers(2));
    const absl::StatusOr<Answer> answer = job.Complete();
    ASSERT_TRUE(answer.ok()) << moment << ": " << answer.status();
    EXPECT_EQ(job.request().WhatIsWrong(*answer), "") << moment;
    cluster_->RestartWorker(outsider);
    ASSERT_TRUE(cluster_->AwaitWorkers(3));
  }
}

TEST_F(RecoveryTest, AQueuedJobRunsOnThoseThatAreLeft) {
  Start();
  HeldJob job(*cluster_, Moment::kQueued, 2);
  ASSERT_EQ(job.Await(), "");
  // One of the two whose memory is taken: whoever took it is lost with it, which makes room. (A
  // killed worker's calls may break before it is known to be lost, and so might the next job's.)
  const absl::StatusOr<v1::GetClusterResponse> cluster = cluster_->client().GetCluster();
  ASSERT_TRUE(cluster.ok()) << cluster.status();
  const auto full =
      std::find_if(cluster->workers().begin(), cluster->workers().end(),
                   [](const v1::Worker& worker) { return worker.reserved_bytes() > 0; });
  ASSERT_NE(full, cluster->workers().end());
  for (int i = 0; i < 3; ++i) {
    if (cluster_->worker(i).pid() == full->pid()) cluster_->worker(i).Stop();
  }
  ASSERT_TRUE(cluster_->server()
                  .WaitForLogLine({"state=reserved ", absl::StrCat("request=", job.id())})
                  .has_value());
  const absl::StatusOr<Answer> answer = job.Complete();
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_EQ(job.request().WhatIsWrong(*answer), "");
}

TEST_F(RecoveryTest, AOneRankJobOutlivesTheEpochThatItBeganIn) {
  Start();
  const Request& request = RequestFor(Moment::kStep0);
  auto answer = Ask(request, request.Named("lonely", 1));
  const int worker = WorkerOf(*cluster_, "lonely", 0);
  ASSERT_GE(worker, 0);
  ASSERT_TRUE(cluster_->worker(worker).WaitForLogLine({"step=0/", "request=lonely"}));
  cluster_->worker((worker + 1) % 3).Kill();
  ASSERT_TRUE(cluster_->AwaitWorkers(2));
  const absl::StatusOr<Answer> got = answer.get();
  ASSERT_TRUE(got.ok()) << got.status();
  EXPECT_EQ(got->attempts, 1);
  EXPECT_EQ(request.WhatIsWrong(*got), "");
}

TEST_F(RecoveryTest, AJoinDisturbsNothing) {
  Start();
  const Request& request = RequestFor(Moment::kStep0);
  auto answer = Ask(request, request.Named("steady", 3));
  ASSERT_TRUE(cluster_->server().WaitForLogLine({"state=running ", "request=steady"}));
  cluster_->AddWorker();
  ASSERT_TRUE(cluster_->AwaitWorkers(4));
  const absl::StatusOr<Answer> got = answer.get();
  ASSERT_TRUE(got.ok()) << got.status();
  EXPECT_EQ(got->attempts, 1);
  ExpectAnswer(4);
}

TEST_F(RecoveryTest, ACoordinatorThatWasPausedLosesNobody) {
  Start();
  const std::string epoch = cluster_->client().GetCluster()->epoch();
  cluster_->server().Stop();
  // The pause itself is what is tested: longer than a worker may be silent, shorter than what a
  // worker grants its coordinator.
  std::this_thread::sleep_for(HeldClusterOptions().lost_after * 3 / 2);
  cluster_->server().Continue();
  ExpectAnswer(3);
  // Its clocks have run on time again for as long as it takes to lose a silent worker.
  const absl::StatusOr<v1::GetClusterResponse> cluster = cluster_->client().GetCluster();
  ASSERT_TRUE(cluster.ok());
  EXPECT_EQ(cluster->workers_size(), 3);
  EXPECT_EQ(cluster->epoch(), epoch);
}

TEST_F(RecoveryTest, WorkersComeBackToACoordinatorThatWasSilentForLong) {
  ClusterOptions options = HeldClusterOptions();
  options.lost_after = milliseconds(400) * kSlowness;
  Start(options);
  cluster_->server().Stop();
  for (int i = 0; i < 3; ++i) {
    // Each gives up by itself.
    EXPECT_TRUE(cluster_->worker(i).WaitForLogLine({"coordinator", "silent"}))
        << "worker " << i << " does not notice";
  }
  cluster_->server().Continue();
  EXPECT_TRUE(WaitUntil([&] {
    const absl::StatusOr<Answer> answer =
        SmallRequest().AskOf(cluster_->client(), SmallRequest().Named("check", 3));
    return answer.ok() && SmallRequest().WhatIsWrong(*answer).empty();
  }));
}

TEST_F(RecoveryTest, ARestartedCoordinatorIsRejoinedAndTheCallSucceeds) {
  Start();
  const struct {
    Moment moment;
    const char* state;
  } kMoments[] = {{Moment::kDownloading, "state=uploading "},
                  {Moment::kStep1, "step=1/"},
                  {Moment::kDownloading, "state=downloading "}};
  int round = 0;
  for (const auto& [moment, state] : kMoments) {
    const Request& request = RequestFor(moment);
    const std::string epoch = cluster_->client().GetCluster()->epoch();
    const std::string id = absl::StrCat("orphan-", round++);
    auto answer = Ask(request, request.Named(id, 3));
    const int worker = WorkerOf(*cluster_, id, 0);
    ASSERT_GE(worker, 0);
    ASSERT_TRUE(cluster_->worker(worker).WaitForLogLine({state, absl::StrCat("request=", id)}));
    cluster_->RestartServer();
    ASSERT_TRUE(cluster_->AwaitWorkers(3));
    const absl::StatusOr<Answer> got = answer.get();
    // The new one may be asked before all have joined: then three are too many.
    if (!got.ok()) {
      EXPECT_EQ(got.status().code(), absl::StatusCode::kUnavailable) << got.status();
    } else {
      EXPECT_GE(got->attempts, 2);
      EXPECT_EQ(request.WhatIsWrong(*got), "");
    }
    ExpectAnswer(3);
    EXPECT_NE(cluster_->client().GetCluster()->epoch(), epoch);
    EXPECT_TRUE(cluster_->AwaitIdle());
  }
}

// What a process holds.
struct Holdings {
  explicit Holdings(const Process& process)
      : files(OpenFiles(process.pid())),
        threads(Threads(process.pid())),
        resident(ResidentBytes(process.pid())) {}

  int files, threads;
  uint64_t resident;
};

void ExpectNoMore(const Process& process, const Holdings& before, uint64_t growth) {
  EXPECT_TRUE(WaitUntil([&] { return Holdings(process).files <= before.files + 4; }))
      << process.name() << ": " << before.files << " open files became " << Holdings(process).files;
  const Holdings after(process);
  EXPECT_LE(after.threads, before.threads + 16) << process.name();
  EXPECT_LT(after.resident, before.resident + growth + kSanitizerBytes) << process.name();
  std::printf("%s: files %d -> %d, threads %d -> %d, MiB %d -> %d\n", process.name().c_str(),
              before.files, after.files, before.threads, after.threads,
              static_cast<int>(before.resident >> 20), static_cast<int>(after.resident >> 20));
}

TEST_F(RecoveryTest, FiftyKillsLeaveTheCoordinatorAndASurvivorAsTheyWere) {
  constexpr int kSurvivor = 0;
  ClusterOptions options = HeldClusterOptions();
  options.workers = 5;  // while some are killed, others come back
  Start(options);
  int retried = 0;
  const auto round = [&](int number) {
    const std::string id = absl::StrCat("round-", number, "-");
    auto answer = Ask(SmallRequest(), SmallRequest().Named(id, 2));
    int victim = WorkerOf(*cluster_, id, number % 2);
    if (victim == kSurvivor) victim = WorkerOf(*cluster_, id, 1 - number % 2);
    ASSERT_GE(victim, 0);
    cluster_->RestartWorker(victim);
    const absl::StatusOr<Answer> got = answer.get();
    ASSERT_TRUE(got.ok()) << got.status();
    EXPECT_EQ(SmallRequest().WhatIsWrong(*got), "");
    retried += got->attempts > 1;
    ASSERT_TRUE(WaitUntil([&] { return cluster_->client().GetCluster()->workers_size() >= 4; }));
  };
  const auto settle = [&] { return cluster_->AwaitWorkers(5) && cluster_->AwaitIdle(); };
  // What a process takes once and keeps is there after the first few.
  for (int i = 0; i < 5; ++i) round(i);
  ASSERT_TRUE(settle());
  const Holdings coordinator(cluster_->server()), survivor(cluster_->worker(kSurvivor));
  const std::set<std::string> shared = SharedMemory();

  retried = 0;
  for (int i = 0; i < kKillRounds && !HasFailure(); ++i) round(5 + i);
  EXPECT_GT(retried, kKillRounds / 2) << "few were killed in the middle of a job";
  ASSERT_TRUE(settle());
  ExpectNoMore(cluster_->server(), coordinator, 16 << 20);
  ExpectNoMore(cluster_->worker(kSurvivor), survivor, 64 << 20);
  EXPECT_EQ(SharedMemory(), shared);
}

TEST_F(RecoveryTest, UnderLoadAndChaosNoAnswerIsWrongAndServiceResumes) {
  Start();
  std::atomic<bool> stop = false;
  std::atomic<int> right = 0, unavailable = 0;
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 3; ++caller) {
    callers.emplace_back([&, caller] {
      const std::unique_ptr<Client> client = cluster_->NewClient();
      for (int call = 0; !stop; ++call) {
        const absl::StatusOr<Answer> answer = SmallRequest().AskOf(
            *client,
            SmallRequest().Named(absl::StrCat("load-", caller, "-", call), (caller + call) % 4),
            {.deadline = kPatience});
        if (answer.ok()) {
          EXPECT_EQ(SmallRequest().WhatIsWrong(*answer), "");
          ++right;
        } else {
          EXPECT_EQ(answer.status().code(), absl::StatusCode::kUnavailable) << answer.status();
          ++unavailable;
          // Nobody there: as a caller would, give it time.
          std::this_thread::sleep_for(milliseconds(50));
        }
      }
    });
  }
  Random random(1);
  const auto end = std::chrono::steady_clock::now() + kChaos * kSlowness;
  while (std::chrono::steady_clock::now() < end) {
    std::this_thread::sleep_for(milliseconds(random.Between(50, 400)));
    const int worker = static_cast<int>(random.Between(0, 2));
    switch (random.Between(0, 4)) {
      case 0:
      case 1:
        cluster_->RestartWorker(worker);
        break;
      case 2:  // shorter than the silence that loses it
        cluster_->worker(worker).Stop();
        std::this_thread::sleep_for(milliseconds(random.Between(10, 300)));
        cluster_->worker(worker).Continue();
        break;
      case 3:  // longer
        cluster_->worker(worker).Stop();
        std::this_thread::sleep_for(HeldClusterOptions().lost_after * 3 / 2);
        cluster_->worker(worker).Continue();
        break;
      case 4:
        cluster_->RestartServer();
        break;
    }
  }
  EXPECT_TRUE(cluster_->AwaitWorkers(3));
  stop = true;
  for (std::thread& caller : callers) caller.join();
  EXPECT_GT(right, 0);
  ExpectAnswer(3);
  EXPECT_TRUE(cluster_->AwaitIdle());
  std::printf("%d answers right, %d calls without a worker\n", right.load(), unavailable.load());
}

}  // namespace
}  // namespace ringserve::test
