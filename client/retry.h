// When is a failed attempt worth another one? Pure decisions.
#pragma once

#include <chrono>
#include <optional>

#include "absl/status/status.h"

namespace ringserve {

// How long to wait before the next attempt, or nothing where `error` would come again. `failures`:
// how many attempts have failed, with this one. `accepted`: the server had taken this call's job in
// some attempt, so that UNAVAILABLE means a loss on the way and not a request that cannot be met.
std::optional<std::chrono::milliseconds> RetryDelay(const absl::Status& error, bool accepted,
                                                    int failures);

// The failed attempts of one call. One that was UNAVAILABLE before the server had taken the job
// found no server that is ready: those are limited in time, where the call waits for readiness. All
// others are limited in number.
class Retries {
 public:
  using Time = std::chrono::steady_clock::time_point;

  Retries(int max_attempts, std::chrono::milliseconds wait_for_ready)
      : max_attempts_(max_attempts), wait_for_ready_(wait_for_ready) {}

  // How long to wait before the next attempt, or nothing where `error` is the call's last word.
  // `accepted`: the server had taken the job in the attempt that ended with it.
  std::optional<std::chrono::milliseconds> DelayAfter(const absl::Status& error, bool accepted,
                                                      Time now);

  // Until when the server may get ready; nothing where the last attempt did not find it unready.
  std::optional<Time> ready_by() const { return ready_by_; }

 private:
  const int max_attempts_;
  const std::chrono::milliseconds wait_for_ready_;
  int failures_ = 0;       // limited in number
  bool accepted_ = false;  // in some attempt
  std::optional<Time> ready_by_;
};

}  // namespace ringserve
