// NcclLibrary on NCCL and the CUDA runtime, for one device. In programs that are built with CUDA.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "worker/comm/nccl_link.h"

namespace ringserve {

// As "2.30.7".
std::string NcclVersion();

// Takes no device yet. `computing_stream` is asked on the engine's thread: the cudaStream_t that it
// computes on now. Sets NCCL_RAS_ENABLE=0, which would have NCCL listen on a port: before other
// threads run.
std::unique_ptr<NcclLibrary> MakeNcclLibrary(int device, std::function<void*()> computing_stream);

}  // namespace ringserve
