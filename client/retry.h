// When is a failed attempt worth another one? A pure decision.
#pragma once

#include <chrono>
#include <optional>

#include "absl/status/status.h"

namespace ringserve {

// How long to wait before the next attempt, or nothing where `error` would come again. `attempt`:
// the number of the one that failed, from 1. `accepted`: the server had taken this call's job in
// some attempt, so that UNAVAILABLE means a loss on the way and not a request that cannot be met.
std::optional<std::chrono::milliseconds> RetryDelay(const absl::Status& error, bool accepted,
                                                    int attempt);

}  // namespace ringserve
