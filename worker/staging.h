// TensorMemory of a device. Bytes travel through pinned pieces, so that the device moves one while
// the next is filled, and jobs upload and download beside the one that computes.
//
// In: a message's bytes are copied into a free piece, and their copy to the device is begun; the
// piece is free again when that is over. Nobody holds a piece between two messages, so what Write
// may wait for is the device alone, and a slow caller holds up nobody. Out: a piece is the
// message's until it is sent, which a slow reader may delay for long; when all pieces are out,
// ordinary memory serves, which is slower and waits for nobody either.
#pragma once

#include <chrono>
#include <deque>
#include <functional>
#include <memory>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "worker/device_copies.h"
#include "worker/piece_pool.h"
#include "worker/tensor_memory.h"

namespace ringserve {

struct StagingOptions {
  int pieces_in = 8;                           // of kMaxMessageBytes
  int pieces_out = 32;                         // of kChunkBytes
  std::chrono::milliseconds patience{90'000};  // no copy takes longer
  // The device has failed, or does not finish its copies: the process is to end. Until then nothing
  // that the device may still touch is given back. Any thread, maybe again and again. Not empty.
  std::function<void(const absl::Status& why)> device_lost;
};

class Staging : public TensorMemory {
 public:
  Staging(std::shared_ptr<DeviceCopies> copies, StagingOptions options);

  // After its fetches. Waits for what it has written.
  ~Staging() override;

  absl::StatusOr<TensorBuffer> Allocate(uint64_t bytes) override;

  // `keep_alive` is let go of under a lock of this: its end may give buffers back, and nothing else
  // here.
  absl::Status Write(std::span<const PlacedChunk> chunks,
                     const std::shared_ptr<const void>& keep_alive) override;
  absl::Status Settle() override;
  absl::StatusOr<std::unique_ptr<Fetch>> Begin(const std::byte* from, uint64_t size,
                                               std::shared_ptr<const void> keep_alive) override;

 private:
  class StagedFetch;
  struct Copy {
    std::byte* to = nullptr;
    const std::byte* from = nullptr;
    uint64_t bytes = 0;
  };
  // What a copy that is under way works with.
  struct Held {
    DeviceCopies::Mark mark = 0;
    std::shared_ptr<std::byte> piece;
    std::shared_ptr<const void> keep_alive;
  };

  absl::StatusOr<std::shared_ptr<std::byte>> TakePiece();
  absl::Status Send(const std::vector<Copy>& copies, Held held);
  absl::Status LetGoOfWhatIsWritten();
  absl::Status Await(DeviceCopies::Way way, DeviceCopies::Mark mark);
  absl::Status AwaitUntil(const std::function<absl::StatusOr<bool>()>& done);
  absl::Status Lost(const absl::Status& why);
  void Keep(Held held);

  const std::shared_ptr<DeviceCopies> copies_;
  const StagingOptions options_;
  const std::shared_ptr<PiecePool> in_, out_;
  absl::Mutex mu_;
  std::deque<Held> written_ ABSL_GUARDED_BY(mu_);  // in the order of their marks
  std::vector<Held> lost_ ABSL_GUARDED_BY(mu_);    // nobody knows when they are over
};

}  // namespace ringserve
