#include "tests/gpu/gpus.h"

#include <cuda_runtime_api.h>

namespace ringserve::test {

int GpuCount() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

std::string WhyNoGpu() {
  int count = 0;
  const cudaError_t result = cudaGetDeviceCount(&count);
  if (result != cudaSuccess) return std::string("no GPU: ") + cudaGetErrorString(result);
  return count == 0 ? "no GPU: the driver sees none" : "";
}

}  // namespace ringserve::test
