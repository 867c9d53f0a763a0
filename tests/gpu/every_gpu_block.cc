// The blocks that the tests of tests/worker/attention hold for here: that of the first GPU.
#include <ATen/ATen.h>

#include "tests/gpu/hosted_block.h"
#include "tests/worker/attention/every_block.h"
#include "worker/attention/cuda_block.h"

namespace ringserve::test {

const std::vector<NamedBlock>& EveryDeviceBlock() {
  static const HostedBlock gpu(at::Device(at::kCUDA, 0), [] { return MakeCudaBlock(0); });
  static const std::vector<NamedBlock> blocks = {{"Cuda", &gpu}};
  return blocks;
}

const std::vector<NamedBlock>& EveryBlock() { return EveryDeviceBlock(); }

}  // namespace ringserve::test
