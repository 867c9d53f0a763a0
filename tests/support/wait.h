// Waiting for what another thread or process does: until it is so, or a deadline says it never
// will.
#pragma once

#include <chrono>
#include <functional>
#include <thread>

namespace ringserve::test {

// Sanitizers make everything several times slower.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr int kSlowness = 4;
#else
inline constexpr int kSlowness = 1;
#endif

inline constexpr std::chrono::milliseconds kPatience{20'000 * kSlowness};

// True as soon as `condition` holds; false when `timeout` has passed.
inline bool WaitUntil(const std::function<bool()>& condition,
                      std::chrono::milliseconds timeout = kPatience) {
  const auto deadline = std::chrono::steady_clock::now() + timeout;
  while (!condition()) {
    if (std::chrono::steady_clock::now() >= deadline) return condition();
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  return true;
}

}  // namespace ringserve::test
