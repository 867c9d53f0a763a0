#include "client/retry.h"

#include <algorithm>

#include "proto/status.h"

namespace ringserve {
namespace {

using std::chrono::milliseconds;

constexpr milliseconds kFirstDelay{200};
constexpr milliseconds kLongestDelay{5'000};
constexpr milliseconds kReadyInterval{250};  // between attempts at a server that is not ready

}  // namespace

std::optional<milliseconds> RetryDelay(const absl::Status& error, bool accepted, int failures) {
  const auto backoff = std::min(kLongestDelay, kFirstDelay * (1 << std::min(failures - 1, 10)));
  const std::optional<milliseconds> asked = RetryAfter(error);
  if (asked.has_value()) {
    // The server's word counts; but one that keeps failing gets more time each round.
    return std::max(*asked, failures == 1 ? milliseconds(0) : backoff / 2);
  }
  if (accepted && error.code() == absl::StatusCode::kUnavailable) return backoff;
  return std::nullopt;
}

std::optional<milliseconds> Retries::DelayAfter(const absl::Status& error, bool accepted,
                                                Time now) {
  accepted_ = accepted_ || accepted;
  const bool unready = !accepted && error.code() == absl::StatusCode::kUnavailable;
  if (!unready || wait_for_ready_ == milliseconds(0)) {
    ready_by_.reset();
  } else if (!ready_by_.has_value()) {
    ready_by_ = now + wait_for_ready_;
  }
  if (ready_by_.has_value() && now < *ready_by_) {
    return std::max(kReadyInterval, RetryAfter(error).value_or(milliseconds(0)));
  }
  ++failures_;
  if (failures_ >= max_attempts_) return std::nullopt;
  return RetryDelay(error, accepted_, failures_);
}

}  // namespace ringserve
