// The one of a program that is built without CUDA.
#include "worker/cuda_parts.h"

namespace ringserve {

absl::StatusOr<CudaParts> MakeCudaParts(int, std::function<void(const absl::Status& why)>) {
  return absl::UnimplementedError("this program is built without CUDA (./dev build cuda)");
}

}  // namespace ringserve
