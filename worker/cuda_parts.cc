#include "worker/cuda_parts.h"

#include <cuda_runtime_api.h>

#include <exception>
#include <string>
#include <utility>

#include <ATen/Context.h>
#include <c10/cuda/CUDAStream.h>

#include "absl/strings/str_cat.h"
#include "worker/attention/cuda_block.h"
#include "worker/comm/nccl_calls.h"
#include "worker/cuda_copies.h"
#include "worker/staging.h"

namespace ringserve {
namespace {

// LibTorch's memory, and CUDA's own, on this device.
absl::StatusOr<uint64_t> TakeDevice(int device) {
  size_t free = 0, total = 0;
  cudaError_t result = cudaSetDevice(device);
  // Who waits for the device leaves its core to others.
  if (result == cudaSuccess) result = cudaSetDeviceFlags(cudaDeviceScheduleBlockingSync);
  if (result == cudaSuccess) {
    at::globalContext().lazyInitDevice(at::kCUDA);
    result = cudaMemGetInfo(&free, &total);
  }
  if (result == cudaSuccess) return free;
  return absl::InternalError(cudaGetErrorString(result));
}

}  // namespace

absl::StatusOr<CudaParts> MakeCudaParts(int device,
                                        std::function<void(const absl::Status& why)> device_lost) {
  // The engine's, on whose thread it is asked.
  const auto computing_stream = [device]() -> void* {
    return c10::cuda::getCurrentCUDAStream(static_cast<c10::DeviceIndex>(device)).stream();
  };
  std::unique_ptr<NcclLibrary> nccl = MakeNcclLibrary(device, computing_stream);
  CudaParts parts;
  try {
    const absl::StatusOr<uint64_t> free = TakeDevice(device);
    if (!free.ok()) return free.status();
    parts.free_bytes = *free;
    parts.block = MakeCudaBlock(device);
  } catch (const std::exception& error) {
    return absl::InternalError(error.what());
  }
  absl::StatusOr<std::shared_ptr<DeviceCopies>> copies = MakeCudaCopies(device);
  if (!copies.ok()) return copies.status();
  parts.memory =
      std::make_shared<Staging>(*std::move(copies), StagingOptions{.device_lost = device_lost});
  const auto stuck = [device_lost](const std::string& what) {
    device_lost(absl::InternalError(what));
  };
  parts.exchange = std::make_unique<NcclExchange>(std::move(nccl),
                                                  NcclOptions{.steps_ahead = 0, .on_stuck = stuck});
  return parts;
}

}  // namespace ringserve
