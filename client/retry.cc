#include "client/retry.h"

#include <algorithm>

#include "proto/status.h"

namespace ringserve {
namespace {

constexpr std::chrono::milliseconds kFirstDelay{200};
constexpr std::chrono::milliseconds kLongestDelay{5'000};

}  // namespace

std::optional<std::chrono::milliseconds> RetryDelay(const absl::Status& error, bool accepted,
                                                    int attempt) {
  const auto backoff = std::min(kLongestDelay, kFirstDelay * (1 << std::min(attempt - 1, 10)));
  const std::optional<std::chrono::milliseconds> asked = RetryAfter(error);
  if (asked.has_value()) {
    // The server's word counts; but one that keeps failing gets more time each round.
    return std::max(*asked, attempt == 1 ? std::chrono::milliseconds(0) : backoff / 2);
  }
  if (accepted && error.code() == absl::StatusCode::kUnavailable) return backoff;
  return std::nullopt;
}

}  // namespace ringserve
