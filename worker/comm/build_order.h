// Communicators of several epochs are built one after the other, in the order in which the epochs
// came. Every member hears of them in the same order, and of the end of one that is given up: so
// the oldest that any member builds is the one that all its members build, and nobody waits in a
// circle.
#pragma once

#include <cstdint>
#include <set>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace ringserve {

// Thread safe.
class BuildOrder {
 public:
  // A place behind all others.
  uint64_t Enter() {
    absl::MutexLock lock(&mu_);
    return *building_.insert(building_.end(), next_++);
  }

  bool IsFirst(uint64_t place) const {
    absl::MutexLock lock(&mu_);
    return *building_.begin() == place;
  }

  // Built; or given up, and nothing is left of it.
  void Leave(uint64_t place) {
    absl::MutexLock lock(&mu_);
    building_.erase(place);
  }

 private:
  mutable absl::Mutex mu_;
  uint64_t next_ ABSL_GUARDED_BY(mu_) = 0;
  std::set<uint64_t> building_ ABSL_GUARDED_BY(mu_);
};

}  // namespace ringserve
