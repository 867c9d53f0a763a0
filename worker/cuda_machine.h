// What the CUDA runtime says of this machine; what follows from it is decided in device.h.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace ringserve {

struct CudaDevice {
  std::string name;
  int major = 0, minor = 0;  // compute capability
  uint64_t memory_bytes = 0;
  std::string error;  // why it does not answer: the rest is unknown; the machine's others may serve
};

struct CudaMachine {
  bool built = false;    // this program is built with CUDA
  int runtime = 0;       // CUDA's version that it is built with, in CUDA's way: 13020 is 13.2
  int driver = 0;        // the newest that the driver serves; 0: there is no driver
  bool too_old = false;  // the driver, for the runtime
  std::string release;   // of the driver, as "580.65.06"; empty: the system does not say
  std::string error;     // any other reason why the devices cannot be counted
  std::vector<CudaDevice> devices;
  std::string nccl;  // its version
};

// Uses no device. Where this program is built without CUDA: nothing but that.
CudaMachine AskCuda();

}  // namespace ringserve
