#include "worker/rank_tensors.h"

#include <vector>

#include "proto/tensor_shape.h"

namespace ringserve {
namespace {

at::ScalarType ToScalarType(v1::DType dtype) {
  switch (dtype) {
    case v1::DTYPE_F64:
      return at::kDouble;
    case v1::DTYPE_BF16:
      return at::kBFloat16;
    case v1::DTYPE_F16:
      return at::kHalf;
    default:
      return at::kFloat;
  }
}

// Bytes at `offset` of the job's buffer as [batch, heads, rows, dim], whatever the order in memory.
// The tensor keeps the job alive.
at::Tensor View(const std::shared_ptr<RankJob>& job, std::byte* buffer, uint64_t offset,
                bool head_major, at::IntArrayRef sizes, at::ScalarType type) {
  const int64_t batch = sizes[0], heads = sizes[1], rows = sizes[2], dim = sizes[3];
  if (batch * heads * rows * dim == 0) return at::empty(sizes, at::TensorOptions().dtype(type));
  const std::vector<int64_t> strides =
      head_major ? std::vector<int64_t>{heads * rows * dim, rows * dim, dim, 1}
                 : std::vector<int64_t>{rows * heads * dim, dim, heads * dim, 1};
  return at::from_blob(
      buffer + offset, sizes, strides, [job](void*) {}, at::TensorOptions().dtype(type));
}

void AddExtras(const std::shared_ptr<RankJob>& job, RankTensors& tensors) {
  const RankAssignment& assignment = job->assignment;
  const v1::AttentionSpec& spec = assignment.spec;
  if (spec.has_bias()) {
    const TensorShape shape = ShapeOf(v1::TENSOR_ID_BIAS, spec);
    const at::ScalarType type = spec.bias().boolean() ? at::kByte : ToScalarType(spec.dtype());
    const int64_t batch = assignment.q_rows.size() == 1 ? shape.batch : 1;
    uint64_t begin = 0;
    for (size_t i = 0; i < assignment.q_rows.size(); ++i) {
      tensors.bias.push_back(
          View(job, job->bias.data(), begin, true,
               {batch, shape.planes_per_batch, assignment.q_rows[i], spec.kv_len()}, type));
      begin += assignment.bias_blocks[i];
    }
  }
  const auto per_head = [&](const HostBuffer& buffer) {
    return View(job, buffer.data(), 0, true, {1, 1, 1, spec.q_heads()}, at::kFloat)
        .view({spec.q_heads()});
  };
  if (spec.alibi_slopes()) tensors.alibi_slopes = per_head(job->slopes);
  if (spec.sink_logits()) tensors.sink_logits = per_head(job->sinks);
}

}  // namespace

RankTensors MakeTensors(const std::shared_ptr<RankJob>& job) {
  const RankAssignment& assignment = job->assignment;
  const v1::AttentionSpec& spec = assignment.spec;
  const at::ScalarType type = ToScalarType(spec.dtype());
  const at::ScalarType lse_type = type == at::kDouble ? at::kDouble : at::kFloat;
  const bool head_major = IsHeadMajor(spec);
  const int64_t batch = assignment.q_rows.size() == 1 ? spec.batch() : 1;
  const int64_t heads = spec.q_heads(), dim = spec.head_dim(), value_dim = ValueDim(spec);

  RankTensors tensors;
  uint64_t row = 0;  // rows of all batch rows so far
  for (const int64_t rows : assignment.q_rows) {
    const uint64_t begin = row * heads;
    tensors.q.push_back(View(job, job->q.data(), begin * dim * ElementBytes(spec.dtype()),
                             head_major, {batch, heads, rows, dim}, type));
    tensors.out.push_back(View(job, job->out.data(), begin * value_dim * ElementBytes(spec.dtype()),
                               head_major, {batch, heads, rows, value_dim}, type));
    tensors.lse.push_back(View(job, job->lse.data(), begin * LseElementBytes(spec.dtype()), true,
                               {batch, heads, rows, 1}, lse_type)
                              .squeeze(-1));
    row += batch * rows;
  }
  AddExtras(job, tensors);
  const auto bytes = [&](const HostBuffer& buffer) {
    const int64_t size = static_cast<int64_t>(buffer.size());
    return View(job, buffer.data(), 0, true, {1, 1, 1, size}, at::kByte).view({size});
  };
  tensors.q_bytes = bytes(job->q);
  tensors.kv = bytes(job->kv);
  return tensors;
}

ShardFormat MakeFormat(const v1::AttentionSpec& spec) {
  return {.dtype = ToScalarType(spec.dtype()),
          .head_major = IsHeadMajor(spec),
          .batch = spec.batch(),
          .q_heads = spec.q_heads(),
          .kv_heads = spec.kv_heads(),
          .head_dim = spec.head_dim(),
          .value_dim = ValueDim(spec)};
}

}  // namespace ringserve
