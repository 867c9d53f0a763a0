#include "server/rate_watch.h"

namespace ringserve {

void RateWatch::Wait(Clock::time_point now) {
  if (waiting_) return;
  waiting_ = true;
  since_ = now;
}

// A window ends as soon as it holds enough: haste now is no credit for later.
void RateWatch::Moved(uint64_t bytes, Clock::time_point now) {
  if (!waiting_) return;
  waiting_ = false;
  waited_ += now - since_;
  bytes_ += bytes;
  if (!Enough()) return;
  waited_ = Clock::duration(0);
  bytes_ = 0;
}

bool RateWatch::TooSlow(Clock::time_point now) const {
  if (rate_.bytes_per_second <= 0 || Enough()) return false;
  return waited_ + (waiting_ ? now - since_ : Clock::duration(0)) >= rate_.window;
}

bool RateWatch::Enough() const {
  return bytes_ >= rate_.bytes_per_second * std::chrono::duration<double>(rate_.window).count();
}

}  // namespace ringserve
