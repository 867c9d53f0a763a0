#include "worker/memory_ledger.h"

#include <atomic>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/synchronization/notification.h"
#include "tests/support/wait.h"

namespace ringserve {
namespace {

using ::testing::HasSubstr;

// What became of one Reserve.
struct Outcome {
  absl::Notification answered;
  absl::Status status;
  MemoryLedger::Reservation reservation;
};

void Ask(MemoryLedger& ledger, uint64_t bytes, Outcome& outcome) {
  ledger.Reserve(bytes, [&](absl::Status status, MemoryLedger::Reservation reservation) {
    outcome.status = std::move(status);
    outcome.reservation = std::move(reservation);
    outcome.answered.Notify();
  });
}

TEST(MemoryLedger, ReservesUpToItsLimitAndTakesBack) {
  const auto ledger = MemoryLedger::Make(100, test::kPatience);
  Outcome a, b;
  Ask(*ledger, 60, a);
  Ask(*ledger, 40, b);
  ASSERT_TRUE(a.answered.HasBeenNotified() && b.answered.HasBeenNotified());
  EXPECT_TRUE(a.status.ok() && b.status.ok());
  EXPECT_EQ(ledger->reserved(), 100u);
  a.reservation.Release();
  a.reservation.Release();
  EXPECT_EQ(ledger->reserved(), 40u);
  { const MemoryLedger::Reservation moved = std::move(b.reservation); }
  EXPECT_EQ(ledger->reserved(), 0u);
}

TEST(MemoryLedger, RefusesAtOnceWhatWillNeverFit) {
  const auto ledger = MemoryLedger::Make(100, test::kPatience);
  Outcome outcome;
  Ask(*ledger, 101, outcome);
  ASSERT_TRUE(outcome.answered.HasBeenNotified());
  EXPECT_EQ(outcome.status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(outcome.status.message()), HasSubstr("101"));
  EXPECT_THAT(std::string(outcome.status.message()), HasSubstr("100"));
}

TEST(MemoryLedger, ServesAReservationThatWaitsAsSoonAsItFits) {
  const auto ledger = MemoryLedger::Make(100, test::kPatience);
  Outcome holder, first, second;
  Ask(*ledger, 80, holder);
  Ask(*ledger, 50, first);
  Ask(*ledger, 10, second);
  EXPECT_FALSE(first.answered.HasBeenNotified());
  EXPECT_FALSE(second.answered.HasBeenNotified()) << "passed the one before it";
  holder.reservation.Release();
  first.answered.WaitForNotification();
  second.answered.WaitForNotification();
  EXPECT_TRUE(first.status.ok()) << first.status;
  EXPECT_TRUE(second.status.ok()) << second.status;
  EXPECT_EQ(ledger->reserved(), 60u);
}

TEST(MemoryLedger, RefusesAfterItsPatienceAndServesWhoeverStoodBehind) {
  const auto ledger = MemoryLedger::Make(100, std::chrono::milliseconds(30));
  Outcome holder, large, small;
  Ask(*ledger, 80, holder);
  Ask(*ledger, 50, large);
  Ask(*ledger, 20, small);
  large.answered.WaitForNotification();
  small.answered.WaitForNotification();
  EXPECT_EQ(large.status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(large.status.message()), HasSubstr("80 of 100"));
  EXPECT_TRUE(
      test::WaitUntil([&] { return ledger->reserved() == (small.status.ok() ? 100u : 80u); }));
}

}  // namespace
}  // namespace ringserve
