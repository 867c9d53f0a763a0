#include "worker/cuda_machine.h"

#include <cuda_runtime_api.h>

#include <fstream>

#include "worker/comm/nccl_calls.h"

namespace ringserve {
namespace {

CudaDevice Ask(int index) {
  cudaDeviceProp properties;
  const cudaError_t asked = cudaGetDeviceProperties(&properties, index);
  if (asked != cudaSuccess) {
    static_cast<void>(cudaGetLastError());  // else it would seem the next call's
    return {.error = cudaGetErrorString(asked)};
  }
  return {.name = properties.name,
          .major = properties.major,
          .minor = properties.minor,
          .memory_bytes = properties.totalGlobalMem};
}

std::string DriverRelease() {
  std::ifstream file("/sys/module/nvidia/version");
  std::string release;
  file >> release;
  return release;
}

}  // namespace

CudaMachine AskCuda() {
  CudaMachine machine = {.built = true, .release = DriverRelease(), .nccl = NcclVersion()};
  cudaRuntimeGetVersion(&machine.runtime);
  cudaDriverGetVersion(&machine.driver);
  int count = 0;
  const cudaError_t counted = cudaGetDeviceCount(&count);
  machine.too_old = counted == cudaErrorInsufficientDriver && machine.driver > 0;
  const bool known = counted == cudaSuccess || counted == cudaErrorNoDevice ||
                     counted == cudaErrorInsufficientDriver;
  if (!known) machine.error = cudaGetErrorString(counted);
  if (counted != cudaSuccess) return machine;
  for (int index = 0; index < count; ++index) machine.devices.push_back(Ask(index));
  return machine;
}

}  // namespace ringserve
