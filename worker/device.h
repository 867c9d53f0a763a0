// Which device a worker uses: what --device says, against what the machine has. Pure.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/cuda_machine.h"

namespace ringserve {

// INVALID_ARGUMENT: --device is `asked`, and neither auto, cpu nor cuda:N.
absl::Status CheckDevice(const std::string& asked);

// The device that a worker uses for `asked`, which CheckDevice has passed; auto: the best that is
// served, which is cpu. FAILED_PRECONDITION: why the one asked for cannot be served here.
absl::StatusOr<std::string> ChooseDevice(const std::string& asked, const CudaMachine& machine);

// One line for each device; without a GPU one that says "no CUDA device" and why. With CUDA one
// more, of versions.
std::string ListDevices(int cpu_threads, const CudaMachine& machine);

}  // namespace ringserve
