#include "worker/host_memory.h"

#include <utility>

#include "worker/host_buffer.h"

namespace ringserve {
namespace {

// The rows themselves; the message keeps alive what they lie in.
class HostFetch : public TensorMemory::Fetch {
 public:
  HostFetch(const std::byte* from, uint64_t size, std::shared_ptr<const void> keep_alive)
      : from_(from), size_(size), keep_alive_(std::move(keep_alive)) {}

  absl::StatusOr<DataChunk> Take(v1::TensorId tensor, uint64_t offset) override {
    using Owner = std::shared_ptr<const void>;
    return BorrowedChunk(
        tensor, offset, from_, size_, [](void* owner) { delete static_cast<Owner*>(owner); },
        new Owner(std::move(keep_alive_)));
  }

 private:
  const std::byte* const from_;
  const uint64_t size_;
  std::shared_ptr<const void> keep_alive_;
};

}  // namespace

absl::StatusOr<TensorBuffer> HostMemory::Allocate(uint64_t bytes) {
  absl::StatusOr<HostBuffer> buffer = HostBuffer::Allocate(bytes);
  if (!buffer.ok()) return buffer.status();
  auto owner = std::make_shared<HostBuffer>(*std::move(buffer));
  std::byte* const data = owner->data();
  return TensorBuffer{data, bytes, std::move(owner)};
}

absl::Status HostMemory::Write(std::span<const PlacedChunk> chunks,
                               const std::shared_ptr<const void>&) {
  for (const PlacedChunk& placed : chunks) placed.chunk->CopyTo(placed.to);
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<TensorMemory::Fetch>> HostMemory::Begin(
    const std::byte* from, uint64_t size, std::shared_ptr<const void> keep_alive) {
  return std::make_unique<HostFetch>(from, size, std::move(keep_alive));
}

}  // namespace ringserve
