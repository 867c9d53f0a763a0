// One thread that does what gRPC's threads cannot: wait before dialling again, and let go of
// channels (the last channel of a process waits for the very threads that bring its calls' ends).
#pragma once

#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace ringserve {

// Thread safe, but for Stop and the destructor.
class Errands {
 public:
  using Clock = std::chrono::steady_clock;

  Errands() : thread_([this] { Loop(); }) {}

  // After Stop.
  ~Errands();

  // Runs `errand` on the thread, not before `delay` has passed. One that is not due when the
  // errands stop is never run.
  void Run(std::chrono::milliseconds delay, std::function<void()> errand);

  // A call lives, and its Dispose follows.
  void Announce();
  void Dispose(std::shared_ptr<void> call);

  // Releases `object` on the thread, as soon as `may_go` says so there, or a few seconds have
  // passed.
  void Release(
      std::shared_ptr<void> object, std::function<bool()> may_go = [] { return true; });

  // Waits for what was announced, at most a few seconds: calls that are cancelled end soon. Not on
  // the thread itself.
  void Stop();

 private:
  // What is to be done or released, and how often that was put off. True: done.
  struct Errand {
    std::function<bool()> work;
    int put_off = 0;
  };
  using Due = std::multimap<Clock::time_point, Errand>;

  void Loop();
  void RunFirstLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void DropFirstLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  absl::Mutex mu_;
  Due due_ ABSL_GUARDED_BY(mu_);
  int announced_ ABSL_GUARDED_BY(mu_) = 0;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  bool stopped_ ABSL_GUARDED_BY(mu_) = false;
  std::thread thread_;
};

}  // namespace ringserve
