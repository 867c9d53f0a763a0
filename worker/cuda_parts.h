// What a worker on a GPU computes with, keeps its tensors in and exchanges by.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/comm/nccl_exchange.h"
#include "worker/tensor_memory.h"

namespace ringserve {

class Block;

struct CudaParts {
  std::shared_ptr<const Block> block;
  std::shared_ptr<TensorMemory> memory;
  std::unique_ptr<NcclExchange> exchange;  // outlives its communicators
  uint64_t free_bytes = 0;                 // of the device, beside what CUDA itself takes
};

// Takes CUDA device `device`. Sets an environment variable: before other threads run. `device_lost`
// as that of Staging and the engine. INTERNAL: CUDA or LibTorch says why not. UNIMPLEMENTED: this
// program is built without CUDA.
absl::StatusOr<CudaParts> MakeCudaParts(int device,
                                        std::function<void(const absl::Status& why)> device_lost);

}  // namespace ringserve
