// Pieces of pinned memory, all of one size and at most so many: pinning is slow, and takes memory
// from everybody else, so they are made when first wanted and used again. Thread safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "worker/device_copies.h"

namespace ringserve {

class PiecePool : public std::enable_shared_from_this<PiecePool> {
 public:
  static std::shared_ptr<PiecePool> Make(std::shared_ptr<DeviceCopies> copies, uint64_t piece_bytes,
                                         int most) {
    return std::shared_ptr<PiecePool>(new PiecePool(std::move(copies), piece_bytes, most));
  }
  ~PiecePool();

  // A piece, which comes back by itself and keeps the pool alive. nullptr: all are out, or the
  // system has pinned some and pins no more. TakePinned's statuses.
  absl::StatusOr<std::shared_ptr<std::byte>> Take();

 private:
  PiecePool(std::shared_ptr<DeviceCopies> copies, uint64_t piece_bytes, int most)
      : copies_(std::move(copies)), piece_bytes_(piece_bytes), most_(most) {}

  absl::StatusOr<std::byte*> TakeRaw();
  void Give(std::byte* piece);

  const std::shared_ptr<DeviceCopies> copies_;
  const uint64_t piece_bytes_;
  const int most_;
  absl::Mutex mu_;
  int made_ ABSL_GUARDED_BY(mu_) = 0;
  std::vector<std::byte*> free_ ABSL_GUARDED_BY(mu_);
};

}  // namespace ringserve
