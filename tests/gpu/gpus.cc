#include "tests/gpu/gpus.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "worker/cuda_machine.h"
#include "worker/device.h"

namespace ringserve::test {
namespace {

const CudaMachine& Machine() {
  static const CudaMachine machine = AskCuda();
  return machine;
}

}  // namespace

const std::vector<int>& ServedGpus() {
  static const std::vector<int> served = [] {
    std::vector<int> indices;
    for (int index = 0; index < static_cast<int>(Machine().devices.size()); ++index) {
      if (ChooseDevice(absl::StrCat("cuda:", index), Machine()).ok()) indices.push_back(index);
    }
    return indices;
  }();
  return served;
}

std::string WhyNoGpu() {
  const absl::StatusOr<std::string> device = ChooseDevice("cuda:0", Machine());
  if (device.ok()) return "";
  return absl::StrCat("no GPU: ",
                      absl::StripPrefix(device.status().message(), "--device cuda:0: "));
}

}  // namespace ringserve::test
