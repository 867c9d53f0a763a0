// What the kernel says of a process under test: what it holds, and where it listens.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <set>
#include <string>
#include <vector>

#include "tests/support/wait.h"

namespace ringserve::test {

int OpenFiles(pid_t pid);
uint64_t ResidentBytes(pid_t pid);

// What a sanitizer keeps of freed memory, to notice who still uses it, and its own accounts.
inline constexpr uint64_t kSanitizerBytes = kSlowness == 1 ? 0 : 640 << 20;

int Threads(pid_t pid);

// The local addresses of its listening TCP sockets: "127.0.0.1", "::1", "0.0.0.0", ...
std::vector<std::string> ListeningHosts(pid_t pid);

// The names in /dev/shm.
std::set<std::string> SharedMemory();

}  // namespace ringserve::test
