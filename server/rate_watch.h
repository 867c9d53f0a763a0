// The minimum rate: is a peer that we wait for too slow? Only the time spent waiting for it counts,
// so a client is never blamed for what the service keeps it waiting for. Told the time; not thread
// safe.
#pragma once

#include <chrono>
#include <cstdint>

namespace ringserve {

// A peer that is waited for during `window` in all (not necessarily at a stretch) must have moved
// bytes_per_second * window bytes in that time.
struct MinimumRate {
  double bytes_per_second = (1 << 20) / 10.0;  // 0: none
  std::chrono::milliseconds window{10'000};
};

class RateWatch {
 public:
  using Clock = std::chrono::steady_clock;

  explicit RateWatch(const MinimumRate& rate) : rate_(rate) {}

  // From now on we wait for the peer. No effect while we do.
  void Wait(Clock::time_point now);

  // The peer moved so many bytes, and is no longer waited for. No effect unless we wait.
  void Moved(uint64_t bytes, Clock::time_point now);

  bool TooSlow(Clock::time_point now) const;

 private:
  bool Enough() const;

  const MinimumRate rate_;
  bool waiting_ = false;
  Clock::time_point since_;
  Clock::duration waited_{0};  // in this window, without the present wait
  uint64_t bytes_ = 0;         // likewise
};

}  // namespace ringserve
