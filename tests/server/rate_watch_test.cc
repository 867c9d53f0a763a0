#include "server/rate_watch.h"

#include <gtest/gtest.h>

namespace ringserve {
namespace {

using std::chrono::milliseconds;

constexpr MinimumRate kRate = {.bytes_per_second = 100, .window = milliseconds(1'000)};

class RateWatchTest : public ::testing::Test {
 protected:
  RateWatch::Clock::time_point At(int64_t ms) { return begin_ + milliseconds(ms); }
  const RateWatch::Clock::time_point begin_ = RateWatch::Clock::now();
  RateWatch watch_{kRate};
};

TEST_F(RateWatchTest, SilenceIsTooSlowAfterTheWindow) {
  watch_.Wait(At(0));
  EXPECT_FALSE(watch_.TooSlow(At(999)));
  EXPECT_TRUE(watch_.TooSlow(At(1'000)));
}

TEST_F(RateWatchTest, OnlyTimeSpentWaitingCounts) {
  for (int i = 0; i < 9; ++i) {
    watch_.Wait(At(i * 100'000));
    watch_.Moved(1, At(i * 100'000 + 100));
  }
  EXPECT_FALSE(watch_.TooSlow(At(99'000'000)));
  watch_.Wait(At(100'000'000));
  EXPECT_FALSE(watch_.TooSlow(At(100'000'099)));
  EXPECT_TRUE(watch_.TooSlow(At(100'000'100)));
}

TEST_F(RateWatchTest, AByteNowAndThenIsTooSlow) {
  for (int i = 0; i < 10; ++i) {
    watch_.Wait(At(i * 100));
    EXPECT_FALSE(watch_.TooSlow(At(i * 100 + 99)));
    watch_.Moved(9, At(i * 100 + 100));
  }
  EXPECT_TRUE(watch_.TooSlow(At(1'000)));
}

TEST_F(RateWatchTest, TheRateItselfIsEnough) {
  for (int i = 0; i < 100; ++i) {
    watch_.Wait(At(i * 900));
    EXPECT_FALSE(watch_.TooSlow(At(i * 900 + 899)));
    watch_.Moved(100, At(i * 900 + 900));
  }
}

TEST_F(RateWatchTest, HasteIsNoCreditForLater) {
  watch_.Wait(At(0));
  watch_.Moved(1'000'000, At(1));
  watch_.Wait(At(1));
  EXPECT_TRUE(watch_.TooSlow(At(1'001)));
}

TEST_F(RateWatchTest, MovesAndWaitsThatMeanNothingChangeNothing) {
  watch_.Moved(100, At(0));  // nobody waited
  watch_.Wait(At(0));
  watch_.Wait(At(900));  // it waits already
  EXPECT_TRUE(watch_.TooSlow(At(1'000)));
}

TEST_F(RateWatchTest, WithoutARateNobodyIsTooSlow) {
  RateWatch watch({.bytes_per_second = 0, .window = milliseconds(1'000)});
  watch.Wait(At(0));
  EXPECT_FALSE(watch.TooSlow(At(1'000'000'000)));
}

}  // namespace
}  // namespace ringserve
