// DeviceCopies on the CUDA runtime. In programs that are built with CUDA.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "worker/device_copies.h"

namespace ringserve {

// Device memory is LibTorch's: its allocator gives what it keeps for later, of its own or of jobs,
// to whoever needs it, so that neither starves the other. LibTorch has taken the device. INTERNAL:
// CUDA says why not.
absl::StatusOr<std::shared_ptr<DeviceCopies>> MakeCudaCopies(int device);

}  // namespace ringserve
