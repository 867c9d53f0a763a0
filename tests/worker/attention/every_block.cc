#include "tests/worker/attention/every_block.h"

#include <memory>

#include "tests/worker/attention/fake_attention_kernels.h"
#include "worker/attention/cpu_block.h"
#include "worker/attention/device_block.h"

namespace ringserve::test {
namespace {

const Block* Device(int capability, const PieceLimits& limits) {
  static std::vector<std::unique_ptr<Block>> blocks;
  blocks.push_back(std::make_unique<DeviceBlock>(std::make_unique<FakeAttentionKernels>(capability),
                                                 capability, limits));
  return blocks.back().get();
}

}  // namespace

const std::vector<NamedBlock>& EveryDeviceBlock() {
  // So small that tests of a few rows need many pieces and parts.
  static const PieceLimits small = {
      .numbers = 3000, .queries = 30, .masked_queries = 25, .masked_keys = 60, .whole_keys = 7};
  static const std::vector<NamedBlock> blocks = {{"Device90", Device(90, {})},
                                                 {"Device75", Device(75, {})},
                                                 {"DeviceOfSmallPieces", Device(80, small)}};
  return blocks;
}

const std::vector<NamedBlock>& EveryBlock() {
  static const std::vector<NamedBlock> blocks = [] {
    std::vector<NamedBlock> all = {{"Cpu", &CpuBlock()}};
    all.insert(all.end(), EveryDeviceBlock().begin(), EveryDeviceBlock().end());
    return all;
  }();
  return blocks;
}

}  // namespace ringserve::test
