// LibTorch's CPU memory, counted by the thread that takes it.
#pragma once

#include <cstdint>

namespace ringserve::test {

// From now on all of LibTorch's CPU memory is counted. Once per process, before any tensor is made.
void CountMemory();

// What this thread takes counts from 0 again.
void ResetMemoryCount();

// The most bytes that were held at once of what this thread has taken since the reset.
uint64_t MostMemoryHeld();

}  // namespace ringserve::test
