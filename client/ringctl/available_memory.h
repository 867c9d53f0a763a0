// What this machine can still give.
#pragma once

#include <cstdint>

namespace ringserve {

// Bytes of memory that are available without swapping; 0 where the system does not say.
uint64_t AvailableMemoryBytes();

}  // namespace ringserve
