// When another attempt is made, and that lent bytes come back: without a server.
#include "client/retry.h"

#include <optional>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "client/loan.h"
#include "proto/status.h"

namespace ringserve {
namespace {

using std::chrono::milliseconds;

TEST(Retry, FollowsTheServersMarkWhateverTheCode) {
  for (const auto code : {absl::StatusCode::kUnavailable, absl::StatusCode::kResourceExhausted}) {
    const absl::Status error = WithRetryAfter(absl::Status(code, "busy"), milliseconds(70));
    EXPECT_EQ(RetryDelay(error, /*accepted=*/false, 1), milliseconds(70));
  }
}

TEST(Retry, WaitsLongerEachTimeButNeverLessThanAsked) {
  const absl::Status error = WithRetryAfter(absl::UnavailableError("lost"), milliseconds(10));
  milliseconds last{0};
  for (int failures = 1; failures < 40; ++failures) {
    const auto delay = RetryDelay(error, false, failures);
    ASSERT_TRUE(delay.has_value());
    EXPECT_GE(*delay, last);
    EXPECT_LE(*delay, milliseconds(5'000));
    last = *delay;
  }
  EXPECT_GT(last, milliseconds(1'000));
  const absl::Status patient = WithRetryAfter(absl::UnavailableError("lost"), milliseconds(9'000));
  EXPECT_EQ(RetryDelay(patient, false, 30), milliseconds(9'000));
}

TEST(Retry, TakesUnavailableForALossOnlyAfterTheServerHadTakenTheJob) {
  EXPECT_FALSE(RetryDelay(absl::UnavailableError("too few workers"), false, 1).has_value());
  EXPECT_TRUE(RetryDelay(absl::UnavailableError("Socket closed"), true, 1).has_value());
}

TEST(Retry, NeverRepeatsWhatWouldFailAgain) {
  for (const absl::Status& error :
       {absl::InvalidArgumentError(""), absl::UnimplementedError(""),
        absl::FailedPreconditionError(""), absl::ResourceExhaustedError("no mark"),
        absl::DeadlineExceededError(""), absl::CancelledError(""), absl::InternalError(""),
        absl::UnauthenticatedError(""), absl::PermissionDeniedError("")}) {
    EXPECT_FALSE(RetryDelay(error, true, 1).has_value()) << error;
  }
}

const absl::Status kNoWorkers = absl::UnavailableError("no worker has joined");
const absl::Status kLost = WithRetryAfter(absl::UnavailableError("lost"), milliseconds(10));
const absl::Status kFull = WithRetryAfter(absl::ResourceExhaustedError("full"), milliseconds(10));

TEST(Retries, OfAServerThatIsNotReadyAreLimitedInTimeAlone) {
  Retries retries(/*max_attempts=*/1, /*wait_for_ready=*/milliseconds(1'000));
  Retries::Time now;
  int attempts = 1;
  while (const auto delay = retries.DelayAfter(kNoWorkers, /*accepted=*/false, now)) {
    EXPECT_EQ(retries.ready_by(), Retries::Time() + milliseconds(1'000));
    now += *delay;
    ++attempts;
  }
  EXPECT_EQ(now, Retries::Time() + milliseconds(1'000));
  EXPECT_EQ(attempts, 5);
}

TEST(Retries, OfAServerThatIsNotReadyComeNoSoonerThanItSays) {
  Retries retries(1, milliseconds(1'000));
  EXPECT_EQ(retries.DelayAfter(kLost, false, {}), milliseconds(250));
  const absl::Status later = WithRetryAfter(kNoWorkers, milliseconds(400));
  EXPECT_EQ(retries.DelayAfter(later, false, {}), milliseconds(400));
}

TEST(Retries, OfAJobThatWasAcceptedAreLimitedInNumberHoweverLongReadinessIsWaitedFor) {
  Retries retries(3, milliseconds(60'000));
  EXPECT_EQ(retries.DelayAfter(kLost, /*accepted=*/true, {}), milliseconds(10));
  EXPECT_EQ(retries.DelayAfter(kLost, true, {}), milliseconds(200));
  EXPECT_EQ(retries.DelayAfter(kLost, true, {}), std::nullopt);
}

TEST(Retries, AreCountedWithoutThoseThatWaitedForReadiness) {
  Retries retries(2, milliseconds(60'000));
  for (int i = 0; i < 6; ++i) {
    EXPECT_EQ(retries.DelayAfter(kNoWorkers, false, {}), milliseconds(250));
  }
  EXPECT_EQ(retries.DelayAfter(kFull, false, {}), milliseconds(10));
  EXPECT_EQ(retries.DelayAfter(kNoWorkers, false, {}), milliseconds(250));
  EXPECT_EQ(retries.DelayAfter(kFull, false, {}), std::nullopt);
}

TEST(Retries, WaitAnewForAServerThatWasReadyInBetween) {
  Retries retries(5, milliseconds(1'000));
  const Retries::Time later = Retries::Time() + milliseconds(800);
  EXPECT_TRUE(retries.DelayAfter(kNoWorkers, false, {}).has_value());
  EXPECT_TRUE(retries.DelayAfter(kLost, true, later).has_value());
  EXPECT_EQ(retries.ready_by(), std::nullopt);
  EXPECT_TRUE(retries.DelayAfter(kNoWorkers, false, later).has_value());
  EXPECT_EQ(retries.ready_by(), later + milliseconds(1'000));
}

TEST(Retries, WaitForNoServerUnlessTold) {
  Retries retries(5, milliseconds(0));
  EXPECT_EQ(retries.DelayAfter(kNoWorkers, false, {}), std::nullopt);
  EXPECT_EQ(retries.ready_by(), std::nullopt);
}

TEST(Loan, IsReturnedWhenTheLastReferenceIsGone) {
  auto loan = std::make_shared<Loan>();
  EXPECT_TRUE(loan->AwaitReturned(milliseconds(0)));
  std::vector<std::byte> bytes(1000);
  auto chunk = std::make_unique<DataChunk>(loan->Lend(v1::TENSOR_ID_Q, 0, bytes.data(), 1000));
  auto part = std::make_unique<DataChunk>(chunk->Sub(500, 400));
  chunk.reset();
  EXPECT_FALSE(loan->AwaitReturned(milliseconds(0)));
  std::thread other([&] { part.reset(); });
  EXPECT_TRUE(loan->AwaitReturned(milliseconds(20'000)));
  other.join();
}

}  // namespace
}  // namespace ringserve
