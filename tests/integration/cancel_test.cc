// A caller that cancels, or whose deadline passes, in every state of its job: everything is freed,
// and another caller's jobs stay right all the while.
#include <atomic>
#include <chrono>
#include <string>
#include <thread>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "tests/integration/held_job.h"
#include "tests/support/cluster_fixture.h"

namespace ringserve::test {
namespace {

using std::chrono::milliseconds;

// Calls again and again, on one worker, and looks at every answer.
class Bystander {
 public:
  explicit Bystander(const Cluster& cluster)
      : client_(cluster.NewClient()), thread_([this] { Loop(); }) {}
  ~Bystander() {
    stop_ = true;
    thread_.join();
    EXPECT_EQ(trouble_, "");
  }

  int answers() const { return answers_; }

 private:
  void Loop() {
    const Request& request = SmallRequest();
    while (!stop_ && trouble_.empty()) {
      const absl::StatusOr<Answer> answer =
          request.AskOf(*client_, request.Named("bystander", 1), {.max_attempts = 1});
      trouble_ = answer.ok() ? request.WhatIsWrong(*answer) : answer.status().ToString();
      ++answers_;
    }
  }

  const std::unique_ptr<Client> client_;
  std::atomic<bool> stop_ = false;
  std::atomic<int> answers_ = 0;
  std::string trouble_;  // the thread's, until it has ended
  std::thread thread_;
};

class CancelTest : public ClusterTest, public ::testing::WithParamInterface<Moment> {
 protected:
  static void SetUpTestSuite() { Start(HeldClusterOptions()); }
  void SetUp() override { SmallRequest(); }

  static bool EndIsLogged(const HeldJob& job) {
    return cluster_->server()
        .WaitForLogLine({"state=ended ", absl::StrCat("request=", job.id())})
        .has_value();
  }
};

std::string NameOfMoment(const ::testing::TestParamInfo<Moment>& info) {
  return NameOf(info.param);
}

TEST_P(CancelTest, ACancelFreesEverythingAndDisturbsNobody) {
  {
    Bystander bystander(*cluster_);
    HeldJob job(*cluster_, GetParam(), 2, 1);
    ASSERT_EQ(job.Await(), "");
    EXPECT_TRUE(job.StillThere());
    job.call().Cancel();
    EXPECT_EQ(job.call().Finish().code(), absl::StatusCode::kCancelled);
    EXPECT_TRUE(EndIsLogged(job));
    const int before = bystander.answers();
    EXPECT_TRUE(WaitUntil([&] { return bystander.answers() >= before + 2; }));
  }
  EXPECT_TRUE(cluster_->AwaitIdle()) << "something is still reserved";
}

INSTANTIATE_TEST_SUITE_P(Every, CancelTest,
                         ::testing::Values(Moment::kQueued, Moment::kReserved, Moment::kUploading,
                                           Moment::kReady, Moment::kStep0, Moment::kStep1,
                                           Moment::kDownloading),
                         NameOfMoment);

class DeadlineTest : public CancelTest {};

// The deadline counts from the header, and how long it takes to get to the moment is not known: a
// deadline that came too early, or too late for a job that runs, is followed by a longer one.
TEST_P(DeadlineTest, APassedDeadlineFreesEverythingAndDisturbsNobody) {
  bool hit = false;
  {
    Bystander bystander(*cluster_);
    for (milliseconds deadline(400); deadline < kPatience && !hit; deadline *= 2) {
      HeldJob job(*cluster_, GetParam(), 2, 1, deadline);
      if (!job.Await(deadline).empty()) continue;
      // To read is to move on what is downloading.
      if (GetParam() == Moment::kDownloading) {
        EXPECT_TRUE(EndIsLogged(job));
      }
      hit = job.call().Finish().code() == absl::StatusCode::kDeadlineExceeded;
      EXPECT_TRUE(EndIsLogged(job));
      const int before = bystander.answers();
      EXPECT_TRUE(WaitUntil([&] { return bystander.answers() >= before + 1; }));
    }
  }
  EXPECT_TRUE(hit);
  EXPECT_TRUE(cluster_->AwaitIdle()) << "something is still reserved";
}

INSTANTIATE_TEST_SUITE_P(Every, DeadlineTest,
                         ::testing::Values(Moment::kQueued, Moment::kReserved, Moment::kUploading,
                                           Moment::kReady, Moment::kStep0, Moment::kDownloading),
                         NameOfMoment);

}  // namespace
}  // namespace ringserve::test
