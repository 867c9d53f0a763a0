// The blocks that the same tests are to hold for: the processor's, and a device's over fake
// kernels.
#pragma once

#include <string>
#include <vector>

#include "worker/attention/block.h"

namespace ringserve::test {

struct NamedBlock {
  std::string name;
  const Block* block;
};

// Names as gtest wants them. They live as long as the program.
const std::vector<NamedBlock>& EveryBlock();

// All but the processor's.
const std::vector<NamedBlock>& EveryDeviceBlock();

// For tests that need only one: the processor's, or of a program for GPUs the GPU's.
inline const Block& FirstBlock() { return *EveryBlock().front().block; }

}  // namespace ringserve::test
