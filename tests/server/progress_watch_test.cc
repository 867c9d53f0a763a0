#include "server/progress_watch.h"

#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace ringserve {
namespace {

using std::chrono::milliseconds;
using ::testing::ElementsAre;
using ::testing::IsEmpty;

v1::Heartbeat Beat(uint64_t job, uint64_t progress, bool computing = false) {
  v1::Heartbeat heartbeat;
  heartbeat.set_job(job);
  heartbeat.set_progress(progress);
  heartbeat.set_computing(computing);
  return heartbeat;
}

TEST(ProgressWatch, FindsAJobWithoutProgressOnce) {
  ProgressWatch watch(milliseconds(1'000));
  watch.Watch(1);
  watch.Report("a", Beat(1, 5));
  EXPECT_THAT(watch.Advance(milliseconds(600)), IsEmpty());
  watch.Report("a", Beat(1, 5));
  EXPECT_THAT(watch.Advance(milliseconds(400)), IsEmpty()) << "exactly the deadline";
  watch.Report("a", Beat(1, 5));
  EXPECT_THAT(watch.Advance(milliseconds(1)), ElementsAre(1));
  EXPECT_THAT(watch.Advance(milliseconds(5'000)), IsEmpty());
}

TEST(ProgressWatch, OneRankThatMovesIsEnough) {
  ProgressWatch watch(milliseconds(1'000));
  watch.Watch(1);
  for (int i = 0; i < 10; ++i) {
    watch.Report("a", Beat(1, 5));
    watch.Report("b", Beat(1, i));
    EXPECT_THAT(watch.Advance(milliseconds(900)), IsEmpty());
  }
  EXPECT_THAT(watch.Advance(milliseconds(200)), ElementsAre(1));
}

TEST(ProgressWatch, ALongStepIsNoFault) {
  ProgressWatch watch(milliseconds(1'000));
  watch.Watch(1);
  for (int i = 0; i < 10; ++i) {
    watch.Report("a", Beat(1, 5, true));
    EXPECT_THAT(watch.Advance(milliseconds(900)), IsEmpty());
  }
}

TEST(ProgressWatch, AnotherJobsProgressIsNotThisOnes) {
  ProgressWatch watch(milliseconds(1'000));
  watch.Watch(1);
  watch.Watch(2);
  for (int i = 0; i < 2; ++i) {
    watch.Report("a", Beat(2, i));
    watch.Report("b", Beat(0, i));
    EXPECT_THAT(watch.Advance(milliseconds(500)), IsEmpty());
  }
  watch.Report("a", Beat(2, 9));
  EXPECT_THAT(watch.Advance(milliseconds(500)), ElementsAre(1));
}

TEST(ProgressWatch, ForgetsWhatIsOver) {
  ProgressWatch watch(milliseconds(1'000));
  watch.Watch(1);
  watch.Report("a", Beat(1, 5));
  watch.Forget(1);
  watch.Forget(1);
  watch.ForgetWorker("a");
  EXPECT_TRUE(watch.empty());
  EXPECT_THAT(watch.Advance(milliseconds(5'000)), IsEmpty());
}

}  // namespace
}  // namespace ringserve
