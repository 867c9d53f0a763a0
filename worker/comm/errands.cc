#include "worker/comm/errands.h"

#include <algorithm>
#include <cassert>
#include <utility>

#include "absl/time/time.h"

namespace ringserve {
namespace {

constexpr absl::Duration kLongestGoodbye = absl::Seconds(5);
constexpr std::chrono::milliseconds kPutOff{20};
constexpr int kMostPutOff = 500;

}  // namespace

Errands::~Errands() { assert(!thread_.joinable()); }

void Errands::Run(std::chrono::milliseconds delay, std::function<void()> errand) {
  absl::MutexLock lock(&mu_);
  if (stopping_) return;
  due_.emplace(Clock::now() + delay, Errand{.work = [errand = std::move(errand)] {
                 errand();
                 return true;
               }});
}

void Errands::Announce() {
  absl::MutexLock lock(&mu_);
  ++announced_;
}

void Errands::Dispose(std::shared_ptr<void> call) {
  Release(std::move(call));
  absl::MutexLock lock(&mu_);
  --announced_;
}

void Errands::Release(std::shared_ptr<void> object, std::function<bool()> may_go) {
  absl::MutexLock lock(&mu_);
  if (stopped_) {
    // Too late, and possibly on a thread that must not do it: the process ends anyway.
    static_cast<void>(new std::shared_ptr<void>(std::move(object)));
    return;
  }
  due_.emplace(Clock::time_point::min(),
               Errand{.work = [object = std::move(object), may_go = std::move(may_go)] {
                 return may_go();
               }});
}

void Errands::Stop() {
  const auto all_over = [this]() ABSL_SHARED_LOCKS_REQUIRED(mu_) { return announced_ == 0; };
  {
    absl::MutexLock lock(&mu_);
    mu_.AwaitWithTimeout(absl::Condition(&all_over), kLongestGoodbye);
    stopping_ = true;
  }
  thread_.join();
}

void Errands::Loop() {
  const auto something_due = [this]() ABSL_SHARED_LOCKS_REQUIRED(mu_) {
    return stopping_ || (!due_.empty() && due_.begin()->first <= Clock::now());
  };
  const auto changed = [this]()
                           ABSL_SHARED_LOCKS_REQUIRED(mu_) { return stopping_ || !due_.empty(); };
  absl::MutexLock lock(&mu_);
  for (;;) {
    mu_.Await(absl::Condition(&changed));
    if (!due_.empty() && due_.begin()->first > Clock::now() && !stopping_) {
      // An earlier one may come meanwhile.
      mu_.AwaitWithTimeout(absl::Condition(&something_due),
                           absl::FromChrono(due_.begin()->first - Clock::now()));
      continue;
    }
    if (due_.empty()) break;  // stopping, and nothing follows
    // When stopping, what waits for its time is dropped, which may bring more to release.
    if (due_.begin()->first > Clock::now()) {
      DropFirstLocked();
    } else {
      RunFirstLocked();
    }
  }
  stopped_ = true;
}

void Errands::DropFirstLocked() {
  auto dropped = due_.extract(due_.begin());
  mu_.Unlock();
  dropped = {};
  mu_.Lock();
}

void Errands::RunFirstLocked() {
  Errand errand = std::move(due_.extract(due_.begin()).mapped());
  mu_.Unlock();
  const bool done = errand.work() || ++errand.put_off > kMostPutOff;
  if (done) errand.work = nullptr;
  mu_.Lock();
  if (!done) due_.emplace(Clock::now() + kPutOff, std::move(errand));
}

}  // namespace ringserve
