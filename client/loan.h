// The caller's bytes while gRPC refers to them in place: counts the references that are out, so
// that a call returns only when the last one is gone.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "proto/wire.h"

namespace ringserve {

// Thread safe.
class Loan : public std::enable_shared_from_this<Loan> {
 public:
  // A chunk over `data`, never copied; it counts as out until its last reference is gone. `size` >
  // 0.
  DataChunk Lend(v1::TensorId tensor, uint64_t offset, const std::byte* data, uint64_t size);

  // True iff everything lent is back; waits for that, at most `timeout`.
  bool AwaitReturned(std::chrono::milliseconds timeout);

 private:
  static void Release(void* owner);

  absl::Mutex mutex_;
  int64_t out_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace ringserve
