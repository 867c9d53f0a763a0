// What the machine can still give to this process: its own share, where the process lives in a
// container (cgroup v2 or v1) or may use some of the processors alone.
#pragma once

#include <cstdint>
#include <string>

namespace ringserve {

// Bytes of memory that this process can get without swapping: what the system calls available, and
// no more than any of its cgroups has left (memory.max - memory.current, with file pages that can
// be dropped counted as free); 0 where the system does not say. `root`: where /proc and /sys lie.
uint64_t AvailableMemoryBytes(const std::string& root = "");

// How many threads can run at a time: the processors of this thread's affinity, and no more than
// any of its cgroups has a quota for (cpu.max), rounded down; at least 1.
int AvailableThreads(const std::string& root = "");

}  // namespace ringserve
