// What a server or worker process asks of the system about itself.
#pragma once

#include "absl/status/status.h"

namespace ringserve {

// The variable by which a parent may tell its children who it is.
inline constexpr char kParentPidVariable[] = "RINGSERVE_PARENT_PID";

// From now on the kernel kills this process (SIGKILL) when the thread that started it ends.
// FAILED_PRECONDITION: that parent is gone already. It cannot be told from a living one if it died
// before this call and did not set kParentPidVariable to its process id. INTERNAL: the system
// refused.
absl::Status DieWithParent();

}  // namespace ringserve
