// What a server or worker process asks of the system about itself.
#pragma once

#include <chrono>
#include <csignal>

#include "absl/status/status.h"

namespace ringserve {

// The variable by which a parent may tell its children who it is.
inline constexpr char kParentPidVariable[] = "RINGSERVE_PARENT_PID";

// From now on the kernel kills this process (SIGKILL) when the thread that started it ends.
// FAILED_PRECONDITION: that parent is gone already. It cannot be told from a living one if it died
// before this call and did not set kParentPidVariable to its process id. INTERNAL: the system
// refused.
absl::Status DieWithParent();

// Blocks SIGTERM and SIGINT, which ask a process to end, for this thread and all that it starts
// later: they wait for whoever asks. One thread without it, and the process would die of them.
sigset_t HoldEndSignals();

// Ends the process at the next of `signals`, with 128 + its number, or with `late_code` when
// `patience` is over. For a thread of its own.
[[noreturn]] void EndAtOnce(sigset_t signals, std::chrono::milliseconds patience, int late_code);

}  // namespace ringserve
