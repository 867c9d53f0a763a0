// The command line of ringserve-worker. What can be known to be wrong without a system call is
// refused here, naming the flag; the rest is Worker::Start's to refuse.
#pragma once

#include <CLI/CLI.hpp>

#include "absl/status/status.h"
#include "proto/log.h"
#include "worker/worker.h"

namespace ringserve {

struct ProcessOptions {
  WorkerOptions worker;
  LogOptions log;
  bool die_with_parent = false;
};

// Adds every flag, each also an environment variable. `options` outlives the parsing and holds the
// defaults.
void AddFlags(CLI::App& app, ProcessOptions& options);

// After parsing: turns `device` from what was asked for into what is used. INVALID_ARGUMENT: no
// such device. UNIMPLEMENTED: one that is not served.
absl::Status ChooseDevice(std::string& device);

}  // namespace ringserve
