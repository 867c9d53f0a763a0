// A worker is killed or stopped in every state of a job and at every step of its ring: the attempt
// ends soon and says that another is worth it, and the rest of the workers go on.
#include <chrono>
#include <future>
#include <string>
#include <tuple>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "proto/status.h"
#include "tests/integration/held_job.h"
#include "tests/support/cluster.h"

namespace ringserve::test {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

enum class Fault { kKilled, kStopped };

std::ostream& operator<<(std::ostream& stream, Fault fault) {
  return stream << (fault == Fault::kKilled ? "killed" : "stopped");
}

// How soon an attempt must have ended.
milliseconds LimitOf(Fault fault) {
  return milliseconds(fault == Fault::kKilled ? 3'000 : 5'000) * kSlowness;
}

using Case = std::tuple<Fault, Moment>;

class FaultTest : public ::testing::TestWithParam<Case> {
 protected:
  static void SetUpTestSuite() { cluster_ = new Cluster(HeldClusterOptions()); }
  static void TearDownTestSuite() {
    delete cluster_;
    cluster_ = nullptr;
  }

  void TearDown() override {
    if (HasFailure()) {
      ADD_FAILURE() << cluster_->Logs();
      // The next case must not inherit this one's wreck.
      delete cluster_;
      cluster_ = new Cluster(HeldClusterOptions());
    }
  }

  static Fault fault() { return std::get<0>(GetParam()); }
  static Moment moment() { return std::get<1>(GetParam()); }

  static void Strike(int victim) {
    if (fault() == Fault::kKilled) {
      cluster_->worker(victim).Kill();
    } else {
      cluster_->worker(victim).Stop();
    }
  }

  // The victim comes back, and all three answer together.
  static void Heal(int victim) {
    if (fault() == Fault::kKilled) {
      cluster_->RestartWorker(victim);
    } else {
      cluster_->worker(victim).Continue();
    }
    ASSERT_TRUE(cluster_->AwaitWorkers(3));
    ExpectRight(SmallRequest().AskOf(cluster_->client(), SmallRequest().Named("after", 3)), 3);
    EXPECT_TRUE(cluster_->AwaitIdle());
  }

  static void ExpectRight(const absl::StatusOr<Answer>& answer, int workers) {
    ASSERT_TRUE(answer.ok()) << answer.status();
    EXPECT_EQ(SmallRequest().WhatIsWrong(*answer), "");
    EXPECT_EQ(answer->statistics.plan().workers(), workers);
  }

  static Cluster* cluster_;
};

Cluster* FaultTest::cluster_ = nullptr;

std::string NameOfCase(const ::testing::TestParamInfo<Case>& info) {
  return absl::StrCat(std::get<0>(info.param) == Fault::kKilled ? "Killed" : "Stopped", "While",
                      NameOf(std::get<1>(info.param)));
}

TEST_P(FaultTest, OneAttemptEndsSoonAndTheRestGoOn) {
  // Another rank is hit each time.
  const int rank = static_cast<int>(moment()) % 3;
  HeldJob job(*cluster_, moment(), 3, rank);
  ASSERT_EQ(job.Await(), "");
  // Whoever has that rank; a queued job has none.
  const int victim = moment() == Moment::kQueued ? rank : WorkerOf(*cluster_, job.id(), rank);

  ASSERT_GE(victim, 0);
  const Clock::time_point begin = Clock::now();
  Strike(victim);
  EXPECT_TRUE(job.StillThere()) << "the job was gone before the worker was";
  const absl::Status status = job.call().Finish();
  const auto elapsed = std::chrono::duration_cast<milliseconds>(Clock::now() - begin);
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
  EXPECT_LT(elapsed.count(), LimitOf(fault()).count()) << status;
  EXPECT_TRUE(RetryAfter(status).has_value()) << status;

  // Another attempt is due after a while: by then the coordinator knows whom not to ask.
  ASSERT_TRUE(cluster_->AwaitWorkers(2));
  ExpectRight(SmallRequest().AskOf(cluster_->client(), SmallRequest().Named("next", 2),
                                   {.max_attempts = 1}),
              2);
  EXPECT_TRUE(cluster_->AwaitIdle()) << "something is still reserved";
  Heal(victim);
}

INSTANTIATE_TEST_SUITE_P(
    Every, FaultTest,
    ::testing::Combine(::testing::Values(Fault::kKilled, Fault::kStopped),
                       ::testing::Values(Moment::kQueued, Moment::kReserved, Moment::kUploading,
                                         Moment::kReady, Moment::kStep0, Moment::kStep1,
                                         Moment::kStep2, Moment::kDownloading)),
    NameOfCase);

// The client library, which retries, is in the same moment: its calls cannot be held, so the logs
// say when to strike.
class RetryTest : public FaultTest {
 protected:
  // What takes so long in this moment that it can be struck there.
  static const Request& TheRequest() {
    return RequestFor(moment() == Moment::kUploading ? Moment::kDownloading : moment());
  }

  // Waits until the request is at the moment; the worker to strike.
  static int AwaitMoment(const std::string& id) {
    const int victim = WorkerOf(*cluster_, id, 1);
    if (victim < 0) return victim;
    const int step = static_cast<int>(moment()) - static_cast<int>(Moment::kStep0);
    const std::string word = moment() == Moment::kStep0 || moment() == Moment::kStep1
                                 ? absl::StrCat("step=", step, "/")
                                 : absl::StrCat("state=", NameOf(moment()));
    EXPECT_TRUE(cluster_->worker(victim).WaitForLogLine({word, absl::StrCat("request=", id)}));
    return victim;
  }
};

TEST_P(RetryTest, TheCallSucceedsOnTheOthers) {
  const std::string id = absl::StrCat("retry-", NameOf(moment()), "-", fault() == Fault::kKilled);
  std::future<absl::StatusOr<Answer>> answer = std::async(std::launch::async, [&] {
    return TheRequest().AskOf(cluster_->client(), TheRequest().Named(id, 2));
  });
  const int victim = AwaitMoment(id);
  ASSERT_GE(victim, 0);
  Strike(victim);
  const absl::StatusOr<Answer> got = answer.get();
  ASSERT_TRUE(got.ok()) << got.status();
  EXPECT_EQ(TheRequest().WhatIsWrong(*got), "");
  EXPECT_EQ(got->attempts, 2);
  EXPECT_TRUE(cluster_->AwaitIdle());
  Heal(victim);
}

INSTANTIATE_TEST_SUITE_P(Some, RetryTest,
                         ::testing::Values(Case{Fault::kKilled, Moment::kUploading},
                                           Case{Fault::kKilled, Moment::kStep0},
                                           Case{Fault::kKilled, Moment::kStep1},
                                           Case{Fault::kKilled, Moment::kDownloading},
                                           Case{Fault::kStopped, Moment::kStep1}),
                         NameOfCase);

}  // namespace
}  // namespace ringserve::test
