// What ringserve-worker can be told. What can be known to be wrong without a system call is refused
// here, naming the option; the rest is Worker::Start's to refuse.
#pragma once

#include <optional>

#include "absl/status/status.h"
#include "proto/log.h"
#include "worker/worker.h"

namespace ringserve {

struct ProcessOptions {
  WorkerOptions worker;
  LogOptions log;
  bool die_with_parent = false;
};

// Fills `options`, see OptionTable::Parse; the device is what was asked for: ChooseDevice is next.
// memory_bytes is 0 where nothing was asked for: the default depends on the device.
std::optional<int> ParseOptions(int argc, const char* const* argv, ProcessOptions& options);

}  // namespace ringserve
