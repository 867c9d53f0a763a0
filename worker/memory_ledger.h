// What this worker's jobs may take, in bytes. The coordinator keeps the real ledger and never sends
// more than fits; here is the proof of it. A call that the coordinator has ended may still be on
// its way out when the next one comes in, so a reservation may wait for it, a moment and no longer.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <list>
#include <memory>

#include <grpcpp/alarm.h>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"

namespace ringserve {

class MemoryLedger : public std::enable_shared_from_this<MemoryLedger> {
 public:
  // Gives its bytes back when destroyed or released.
  class Reservation {
   public:
    Reservation() = default;
    Reservation(Reservation&& other) noexcept;
    Reservation& operator=(Reservation&& other) noexcept;
    ~Reservation() { Release(); }
    void Release();

   private:
    friend class MemoryLedger;
    Reservation(std::shared_ptr<MemoryLedger> ledger, uint64_t bytes)
        : ledger_(std::move(ledger)), bytes_(bytes) {}
    std::shared_ptr<MemoryLedger> ledger_;
    uint64_t bytes_ = 0;
  };
  using Done = std::function<void(absl::Status, Reservation)>;

  static std::shared_ptr<MemoryLedger> Make(uint64_t limit, std::chrono::milliseconds patience);

  // Calls `done` once: at once from this thread where the bytes are there, else from another thread
  // within `patience`. First come, first served. RESOURCE_EXHAUSTED: not there in time; says both
  // numbers.
  void Reserve(uint64_t bytes, Done done);

  uint64_t limit() const { return limit_; }
  uint64_t reserved() const;

 private:
  struct Waiter {
    uint64_t bytes = 0;
    bool served = false;  // by the ledger's lock
    Done done;
    std::unique_ptr<grpc::Alarm> alarm;  // its one callback answers, served or late
  };
  MemoryLedger(uint64_t limit, std::chrono::milliseconds patience)
      : limit_(limit), patience_(patience) {}

  void GiveBack(uint64_t bytes);
  void ServeLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Answer(Waiter& waiter);

  const uint64_t limit_;
  const std::chrono::milliseconds patience_;
  mutable absl::Mutex mu_;
  uint64_t reserved_ ABSL_GUARDED_BY(mu_) = 0;
  std::list<std::shared_ptr<Waiter>> waiters_ ABSL_GUARDED_BY(mu_);
};

}  // namespace ringserve
