// Where a worker's tensors lie, and how their bytes get there from messages and from there into
// messages. On the host both are the same bytes (host_memory.h); a device wants copies in between
// (staging.h). Thread safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "proto/wire.h"

namespace ringserve {

// Bytes of a job's tensors, given back when the last copy of `owner` is gone.
struct TensorBuffer {
  std::byte* data = nullptr;  // nullptr iff size is 0. Maybe a device's: the host reads none of it
  uint64_t size = 0;
  std::shared_ptr<const void> owner;
};

// A chunk, and where its bytes belong.
struct PlacedChunk {
  const DataChunk* chunk = nullptr;
  std::byte* to = nullptr;
};

// All that may fail is INTERNAL: the device has failed, or came to nothing in the time that it had.
class TensorMemory {
 public:
  virtual ~TensorMemory() = default;

  // Zero-filled once Settle says so. RESOURCE_EXHAUSTED: there is not so much.
  virtual absl::StatusOr<TensorBuffer> Allocate(uint64_t bytes) = 0;

  // Copies the bytes of one message's chunks. May return before they are in their places, but needs
  // the chunks no more. Nothing is written when the last copy of `keep_alive` that it took is gone.
  virtual absl::Status Write(std::span<const PlacedChunk> chunks,
                             const std::shared_ptr<const void>& keep_alive) = 0;

  // Waits until everything that was written before is there, for all to see, and its `keep_alive`
  // let go of.
  virtual absl::Status Settle() = 0;

  // Bytes on their way out. Its end waits until nothing is read any more.
  class Fetch {
   public:
    virtual ~Fetch() = default;

    // Once. Waits for the bytes, which from then on are the chunk's own, or what it keeps alive.
    virtual absl::StatusOr<DataChunk> Take(v1::TensorId tensor, uint64_t offset) = 0;
  };

  // Begins to bring `size` bytes, 1 to kChunkBytes, that are final and stay so as long as
  // `keep_alive`.
  virtual absl::StatusOr<std::unique_ptr<Fetch>> Begin(const std::byte* from, uint64_t size,
                                                       std::shared_ptr<const void> keep_alive) = 0;
};

}  // namespace ringserve
