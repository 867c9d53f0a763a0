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
  if (count == 0) return "no GPU: the driver sees none";
  cudaDeviceProp properties;
  if (cudaGetDeviceProperties(&properties, 0) != cudaSuccess)
    return "no GPU: cuda:0 does not answer";
  const bool served = 10 * properties.major + properties.minor >= 75;  // as worker/device.cc
  return served ? "" : std::string("no GPU: cuda:0 is too old: ") + properties.name;
}

}  // namespace ringserve::test
