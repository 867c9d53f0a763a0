// Tensors on the host: messages are copied straight into them, and rows are sent as they lie there.
#pragma once

#include "worker/tensor_memory.h"

namespace ringserve {

class HostMemory : public TensorMemory {
 public:
  absl::StatusOr<TensorBuffer> Allocate(uint64_t bytes) override;
  absl::Status Write(std::span<const PlacedChunk> chunks,
                     const std::shared_ptr<const void>& keep_alive) override;
  absl::Status Settle() override { return absl::OkStatus(); }
  absl::StatusOr<std::unique_ptr<Fetch>> Begin(const std::byte* from, uint64_t size,
                                               std::shared_ptr<const void> keep_alive) override;
};

}  // namespace ringserve
