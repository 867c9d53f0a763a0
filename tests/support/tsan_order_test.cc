// ThreadSanitizer sees the order that Abseil keeps, and nothing that is not there: real races are
// still found, also in what gRPC calls.
#include <atomic>
#include <chrono>
#include <thread>

#include <grpcpp/alarm.h>
#include <gtest/gtest.h>

#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "tests/support/wait.h"

namespace ringserve::test {
namespace {

constexpr int kRounds = 200;

// ThreadSanitizer's exit status in a program that raced.
constexpr int kRaced = 66;

TEST(TsanOrder, KnowsWhatAMutexGuards) {
  absl::Mutex mu;
  int value = 0;
  const auto work = [&] {
    for (int i = 0; i < kRounds; ++i) {
      absl::MutexLock lock(&mu);
      ++value;
    }
  };
  std::thread other(work);
  work();
  other.join();
  EXPECT_EQ(value, 2 * kRounds);
}

TEST(TsanOrder, KnowsReadersAndWriters) {
  absl::Mutex mu;
  int value = 0, seen = 0;
  std::thread reader([&] {
    for (int i = 0; i < kRounds; ++i) {
      absl::ReaderMutexLock lock(&mu);
      seen = std::max(seen, value);
    }
  });
  for (int i = 0; i < kRounds; ++i) {
    absl::MutexLock lock(&mu);
    ++value;
  }
  reader.join();
  EXPECT_LE(seen, kRounds);
}

TEST(TsanOrder, KnowsConditionsThatOthersEvaluate) {
  absl::Mutex mu;
  int turn = 0;
  const auto play = [&](int mine) {
    const auto is_mine = [&] { return turn % 2 == mine; };
    for (int i = 0; i < kRounds; ++i) {
      if (i % 3 == 0) {
        mu.LockWhen(absl::Condition(&is_mine));
      } else if (i % 3 == 1) {
        mu.Lock();
        mu.Await(absl::Condition(&is_mine));
      } else {
        mu.Lock();
        while (!mu.AwaitWithTimeout(absl::Condition(&is_mine), absl::Microseconds(50))) {
        }
      }
      ++turn;
      mu.Unlock();
    }
  };
  std::thread other(play, 1);
  play(0);
  other.join();
  EXPECT_EQ(turn, 2 * kRounds);
}

TEST(TsanOrder, KnowsConditionVariablesAndNotifications) {
  absl::Mutex mu;
  absl::CondVar changed;
  absl::Notification told;
  int value = 0, after = 0;
  std::thread other([&] {
    {
      absl::MutexLock lock(&mu);
      value = 1;
      changed.Signal();
    }
    after = 1;
    told.Notify();
  });
  {
    absl::MutexLock lock(&mu);
    while (value == 0) changed.Wait(&mu);
  }
  ASSERT_TRUE(WaitUntil([&] { return told.HasBeenNotified(); }));
  EXPECT_EQ(after, 1);
  other.join();
}

TEST(TsanOrderDeathTest, ARaceBesideAMutexIsFound) {
  EXPECT_EXIT(
      {
        absl::Mutex mu;
        int value = 0;
        const auto work = [&] {
          for (int i = 0; i < kRounds; ++i) {
            ++value;
            absl::MutexLock lock(&mu);
          }
        };
        std::thread other(work);
        work();
        other.join();
        std::exit(0);
      },
      testing::ExitedWithCode(kRaced), "data race");
}

TEST(TsanOrderDeathTest, ARaceOfTwoReadersIsFound) {
  EXPECT_EXIT(
      {
        absl::Mutex mu;
        int value = 0;
        const auto work = [&] {
          for (int i = 0; i < kRounds; ++i) {
            absl::ReaderMutexLock lock(&mu);
            ++value;
          }
        };
        std::thread other(work);
        work();
        other.join();
        std::exit(0);
      },
      testing::ExitedWithCode(kRaced), "data race");
}

TEST(TsanOrderDeathTest, ARaceInWhatGrpcCallsIsFound) {
  EXPECT_EXIT(
      {
        int value = 0;
        std::atomic<bool> rung = false;
        grpc::Alarm alarm;
        alarm.Set(std::chrono::system_clock::now(), [&](bool) {
          ++value;
          rung.store(true, std::memory_order_relaxed);
        });
        WaitUntil([&] { return rung.load(std::memory_order_relaxed); });
        ++value;
        std::exit(0);
      },
      testing::ExitedWithCode(kRaced), "data race");
}

}  // namespace
}  // namespace ringserve::test
