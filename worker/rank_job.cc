#include "worker/rank_job.h"

#include <cassert>
#include <utility>

#include "proto/tensor_shape.h"

namespace ringserve {

absl::Status RankJob::Allocate(TensorMemory& memory) {
  for (const v1::TensorId tensor : assignment.Held()) {
    uint64_t bytes = assignment.BytesOf(tensor);
    // K's bytes, then V's.
    if (tensor == v1::TENSOR_ID_V || tensor == v1::TENSOR_ID_D_V) continue;
    if (IsOfKeys(tensor)) bytes += assignment.v_bytes;
    absl::StatusOr<TensorBuffer> allocated = memory.Allocate(bytes);
    if (!allocated.ok()) return allocated.status();
    *BufferOf(tensor) = *std::move(allocated);
  }
  return absl::OkStatus();
}

std::byte* RankJob::Data(v1::TensorId tensor) const {
  const bool values = tensor == v1::TENSOR_ID_V || tensor == v1::TENSOR_ID_D_V;
  return BufferOf(tensor)->data + (values ? assignment.k_bytes : 0);
}

const TensorBuffer* RankJob::BufferOf(v1::TensorId tensor) const {
  switch (tensor) {
    case v1::TENSOR_ID_Q:
      return &q;
    case v1::TENSOR_ID_K:
    case v1::TENSOR_ID_V:
      return &kv;
    case v1::TENSOR_ID_BIAS:
      return &bias;
    case v1::TENSOR_ID_ALIBI_SLOPES:
      return &slopes;
    case v1::TENSOR_ID_SINK_LOGITS:
      return &sinks;
    case v1::TENSOR_ID_OUT:
      return &out;
    case v1::TENSOR_ID_LSE:
      return &lse;
    case v1::TENSOR_ID_D_OUT:
      return &d_out;
    case v1::TENSOR_ID_D_LSE:
      return &d_lse;
    case v1::TENSOR_ID_D_Q:
      return &d_q;
    case v1::TENSOR_ID_D_K:
    case v1::TENSOR_ID_D_V:
      return &d_kv;
    case v1::TENSOR_ID_D_SINK_LOGITS:
      return &d_sinks;
    default:
      assert(false);
      return nullptr;
  }
}

TensorBuffer* RankJob::BufferOf(v1::TensorId tensor) {
  return const_cast<TensorBuffer*>(std::as_const(*this).BufferOf(tensor));
}

}  // namespace ringserve
