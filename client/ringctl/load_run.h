// Sends requests through the client library for a while, from several threads, whatever becomes of
// them, and counts.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>

#include "client/ringctl/load_case.h"
#include "client/ringctl/load_statistics.h"
#include "ringserve/client.h"

namespace ringserve {

struct LoadRunOptions {
  int concurrency = 2;
  // The end: whichever comes first. At least one is given.
  std::optional<std::chrono::milliseconds> duration;
  std::optional<int64_t> requests;
  std::chrono::milliseconds deadline{60'000};  // of each request
  int max_attempts = 5;
  std::chrono::milliseconds wait_for_ready{0};
  uint64_t seed = 0;  // of the order of the cases
  // Now and then, from the calling thread: everything so far.
  std::function<void(std::chrono::milliseconds passed, const LoadStatistics& so_far)> on_progress;
  std::chrono::milliseconds progress_interval{10'000};
  // Asked often, from any thread: begin no more requests.
  std::function<bool()> stopped = [] { return false; };
};

// Blocks until the end has come and every request under way is over: at most options.deadline, and
// what the client library takes beyond it, after that. Cases whose `rows` are there are checked.
LoadStatistics RunLoad(Client& client, std::span<const LoadCase> cases,
                       const LoadRunOptions& options);

}  // namespace ringserve
