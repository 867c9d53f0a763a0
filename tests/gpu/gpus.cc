#include "tests/gpu/gpus.h"

#include "absl/strings/str_cat.h"
#include "worker/cuda_machine.h"
#include "worker/device.h"

namespace ringserve::test {

int GpuCount() { return static_cast<int>(AskCuda().devices.size()); }

std::string WhyNoGpu() {
  const absl::StatusOr<std::string> device = ChooseDevice("cuda:0", AskCuda());
  return device.ok() ? "" : absl::StrCat("no GPU: ", device.status().message());
}

}  // namespace ringserve::test
