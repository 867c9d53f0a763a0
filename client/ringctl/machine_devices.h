// Which devices the workers of this machine can have, as `ringserve-worker --list-devices` says.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace ringserve {

struct Gpu {
  std::string name;           // "cuda:0"
  uint64_t memory_bytes = 0;  // 0: not said
};

struct MachineDevices {
  std::vector<Gpu> gpus;
  std::string why_no_gpu;  // where there is none to use
  std::string listing;     // all that was said
};

// What the lines of `listing` mean: one that begins with "cuda:N" is a GPU, whose memory is a
// number before "GiB", unless a semicolon follows: why it cannot be used. One that begins with "no
// CUDA device: " is the reason why there is none.
MachineDevices ReadDevices(const std::string& listing);

// Runs `worker_program`, for seconds. INTERNAL: it cannot be started, fails, or does not end within
// a minute.
absl::StatusOr<MachineDevices> AskDevices(const std::string& worker_program);

}  // namespace ringserve
