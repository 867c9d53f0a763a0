// Tiles on a CUDA device.
#pragma once

#include <memory>

#include "worker/attention/block.h"

namespace ringserve {

// For tensors on CUDA device `device`. From now on this process multiplies fp32 numbers without
// TF32. Throws what LibTorch throws where there is no such device.
std::unique_ptr<Block> MakeCudaBlock(int device);

}  // namespace ringserve
