// The one of a program that is built without CUDA.
#include "worker/cuda_machine.h"

namespace ringserve {

CudaMachine AskCuda() { return {}; }

}  // namespace ringserve
