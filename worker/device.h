// Which device a worker uses: what --device says, against what the machine has. Pure.
#pragma once

#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/cuda_machine.h"

namespace ringserve {

// INVALID_ARGUMENT: --device is `asked`, and neither auto, cpu nor cuda:N.
absl::Status CheckDevice(const std::string& asked);

// The device that a worker uses for `asked`, which CheckDevice has passed; auto: cuda:0 where that
// can be served, else cpu. FAILED_PRECONDITION: why the one asked for cannot be served here.
absl::StatusOr<std::string> ChooseDevice(const std::string& asked, const CudaMachine& machine);

// The N of cuda:N; none: another device.
std::optional<int> CudaIndex(const std::string& device);

// What others are told of a GPU; nothing of a CPU.
struct GpuFacts {
  std::string name, driver, cuda, nccl;  // the last three are versions
};

// Of a device that was chosen.
GpuFacts FactsOf(const std::string& device, const CudaMachine& machine);

// One line for each device; without a GPU one that says "no CUDA device" and why. With CUDA one
// more, of versions.
std::string ListDevices(int cpu_threads, const CudaMachine& machine);

}  // namespace ringserve
