// Tiles on the processor: forward by flash_block.h, fp64 by LibTorch's CPU flash kernel and a
// merge; gradients by backward_block.h.
#pragma once

#include <cstdint>

#include "worker/attention/block.h"

namespace ringserve {

// The most queries and keys for which a dense mask is made at once (fp64).
inline constexpr int64_t kMostMaskedQueries = 512;
inline constexpr int64_t kMostMaskedKeys = 1152;

// Without state.
const Block& CpuBlock();

}  // namespace ringserve
