// When another attempt is made, and that lent bytes come back: without a server.
#include "client/retry.h"

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
  for (int attempt = 1; attempt < 40; ++attempt) {
    const auto delay = RetryDelay(error, false, attempt);
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
