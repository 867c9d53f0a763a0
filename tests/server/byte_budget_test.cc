#include "server/byte_budget.h"

#include <optional>

#include <gtest/gtest.h>

namespace ringserve {
namespace {

TEST(ByteBudget, ARequestStaysWithinItsOwnLimit) {
  ByteBudget budget(1'000);
  ByteBudget::Account account(budget, 100);
  account.Hold(60);
  EXPECT_TRUE(account.MayRead(40));
  EXPECT_FALSE(account.MayRead(41));
  EXPECT_FALSE(account.MayRead(20, /*expected=*/21));
  account.Release(60);
  EXPECT_TRUE(account.MayRead(100));
}

TEST(ByteBudget, AllRequestsStayWithinTheProcessLimit) {
  ByteBudget budget(100);
  ByteBudget::Account first(budget, 100), second(budget, 100);
  first.Hold(70);
  second.Hold(10);
  EXPECT_EQ(budget.held(), 80u);
  EXPECT_TRUE(second.MayRead(20));
  EXPECT_FALSE(second.MayRead(21));
}

TEST(ByteBudget, BeyondTheProcessLimitARequestThatHoldsNothingStillReadsOneMessage) {
  ByteBudget budget(100);
  ByteBudget::Account greedy(budget, 200), other(budget, 200);
  greedy.Hold(150);
  EXPECT_TRUE(other.MayRead(10));
  EXPECT_FALSE(other.MayRead(10, /*expected=*/10));
  other.Hold(10);
  EXPECT_FALSE(other.MayRead(10));
}

TEST(ByteBudget, AnAccountThatEndsGivesBackWhatItHolds) {
  ByteBudget budget(100);
  std::optional<ByteBudget::Account> account(std::in_place, budget, 100);
  account->Hold(33);
  account.reset();
  EXPECT_EQ(budget.held(), 0u);
}

}  // namespace
}  // namespace ringserve
