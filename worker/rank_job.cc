#include "worker/rank_job.h"

#include <cassert>

namespace ringserve {

absl::Status RankJob::Allocate() {
  const std::pair<HostBuffer*, uint64_t> buffers[] = {
      {&q, assignment.q_bytes},         {&kv, assignment.k_bytes + assignment.v_bytes},
      {&bias, assignment.bias_bytes()}, {&slopes, assignment.slope_bytes},
      {&sinks, assignment.sink_bytes},  {&out, assignment.out_bytes},
      {&lse, assignment.lse_bytes},
  };
  for (const auto& [buffer, bytes] : buffers) {
    absl::StatusOr<HostBuffer> allocated = HostBuffer::Allocate(bytes);
    if (!allocated.ok()) return allocated.status();
    *buffer = *std::move(allocated);
  }
  return absl::OkStatus();
}

std::byte* RankJob::Data(v1::TensorId tensor) const {
  switch (tensor) {
    case v1::TENSOR_ID_Q:
      return q.data();
    case v1::TENSOR_ID_K:
      return kv.data();
    case v1::TENSOR_ID_V:
      return kv.data() + assignment.k_bytes;
    case v1::TENSOR_ID_BIAS:
      return bias.data();
    case v1::TENSOR_ID_ALIBI_SLOPES:
      return slopes.data();
    case v1::TENSOR_ID_SINK_LOGITS:
      return sinks.data();
    case v1::TENSOR_ID_OUT:
      return out.data();
    case v1::TENSOR_ID_LSE:
      return lse.data();
    default:
      assert(false);
      return nullptr;
  }
}

}  // namespace ringserve
