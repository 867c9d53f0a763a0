// Restarts under load, as a platform does them: SIGTERM, and another one when it has ended.
#include <csignal>

#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "tests/integration/held_job.h"
#include "tests/integration/request.h"
#include "tests/support/cluster.h"

namespace ringserve::test {
namespace {

using ::testing::IsEmpty;

// Callers that ask again and again, by the client library with its retries.
class Load {
 public:
  Load(const Cluster& cluster, int callers, CallOptions options = {})
      : options_(std::move(options)) {
    options_.on_retry = [this](int, const absl::Status&) { ++retries_; };
    for (int i = 0; i < callers; ++i) {
      callers_.emplace_back([this, client = std::shared_ptr(cluster.NewClient())] {
        while (!stopping_) Ask(*client);
      });
    }
  }
  ~Load() { Stop(); }

  void Stop() {
    stopping_ = true;
    for (std::thread& caller : callers_) caller.join();
    callers_.clear();
  }

  int retries() const { return retries_; }
  // True as soon as `count` more answers have come.
  bool AwaitAnswers(int count) const {
    const int until = answered_ + count;
    return WaitUntil([&] { return answered_ >= until; });
  }

  std::vector<std::string> wrong() const {
    absl::MutexLock lock(&mu_);
    return wrong_;
  }
  std::vector<absl::Status> failed() const {
    absl::MutexLock lock(&mu_);
    return failed_;
  }

 private:
  void Ask(Client& client) {
    const Request& request = SmallRequest();
    const absl::StatusOr<Answer> answer = request.AskOf(client, request.Named("", 0), options_);
    const std::string wrong = answer.ok() ? request.WhatIsWrong(*answer) : "";
    absl::MutexLock lock(&mu_);
    if (!answer.ok()) failed_.push_back(answer.status());
    if (!wrong.empty()) wrong_.push_back(wrong);
    answered_ += answer.ok();
  }

  CallOptions options_;
  std::atomic<bool> stopping_{false};
  std::atomic<int> answered_{0}, retries_{0};
  mutable absl::Mutex mu_;
  std::vector<std::string> wrong_ ABSL_GUARDED_BY(mu_);
  std::vector<absl::Status> failed_ ABSL_GUARDED_BY(mu_);
  std::vector<std::thread> callers_;
};

class RollingTest : public ::testing::Test {
 protected:
  void TearDown() override {
    if (HasFailure()) ADD_FAILURE() << cluster_.Logs();
  }

  Cluster cluster_{{.workers = 3}};
};

TEST_F(RollingTest, ARestartOfOneWorkerAfterTheOtherFailsNoRequest) {
  Load load(cluster_, 3);
  for (int i = 0; i < cluster_.workers(); ++i) {
    ASSERT_TRUE(load.AwaitAnswers(3));
    cluster_.worker(i).Signal(SIGTERM);
    EXPECT_EQ(cluster_.worker(i).WaitForExit(), 0);
    cluster_.RestartWorker(i);
    ASSERT_TRUE(cluster_.AwaitWorkers(3));
  }
  EXPECT_TRUE(load.AwaitAnswers(3));
  load.Stop();
  EXPECT_THAT(load.failed(), IsEmpty());
  EXPECT_THAT(load.wrong(), IsEmpty());
}

// As a Deployment that is recreated: for a while nobody listens, then workers join one by one.
TEST_F(RollingTest, ARestartOfTheCoordinatorFailsNoRequestOfCallersThatWait) {
  Load load(cluster_, 3, {.wait_for_ready = kPatience});
  ASSERT_TRUE(load.AwaitAnswers(3));
  const int before = load.retries();
  cluster_.server().Signal(SIGTERM);
  EXPECT_EQ(cluster_.server().WaitForExit(), 0);
  ASSERT_TRUE(WaitUntil([&] { return load.retries() >= before + 3; }));
  cluster_.RestartServer();
  ASSERT_TRUE(cluster_.AwaitWorkers(3));
  EXPECT_TRUE(load.AwaitAnswers(3));
  load.Stop();
  EXPECT_THAT(load.failed(), IsEmpty());
  EXPECT_THAT(load.wrong(), IsEmpty());
}

TEST_F(RollingTest, ARestartOfTheCoordinatorAnswersNothingWrongAndFailsOnlyAsUnavailable) {
  Load load(cluster_, 3);
  ASSERT_TRUE(load.AwaitAnswers(3));
  cluster_.server().Signal(SIGTERM);
  EXPECT_EQ(cluster_.server().WaitForExit(), 0);
  cluster_.RestartServer();
  ASSERT_TRUE(cluster_.AwaitWorkers(3));
  EXPECT_TRUE(load.AwaitAnswers(3));
  load.Stop();
  EXPECT_THAT(load.wrong(), IsEmpty());
  for (const absl::Status& status : load.failed()) {
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
  }
}

}  // namespace
}  // namespace ringserve::test
