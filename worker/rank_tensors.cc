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

// A job whose memory is of a device.
struct JobOn {
  std::shared_ptr<RankJob> job;
  at::Device device;
};

// Bytes at `offset` of the job's buffer as [batch, heads, rows, dim], whatever the order in memory.
// The tensor keeps the job alive.
at::Tensor View(const JobOn& on, std::byte* buffer, uint64_t offset, bool head_major,
                at::IntArrayRef sizes, at::ScalarType type) {
  const int64_t batch = sizes[0], heads = sizes[1], rows = sizes[2], dim = sizes[3];
  const at::TensorOptions options = at::TensorOptions().dtype(type).device(on.device);
  if (batch * heads * rows * dim == 0) return at::empty(sizes, options);
  const std::vector<int64_t> strides =
      head_major ? std::vector<int64_t>{heads * rows * dim, rows * dim, dim, 1}
                 : std::vector<int64_t>{rows * heads * dim, dim, heads * dim, 1};
  return at::from_blob(
      buffer + offset, sizes, strides, [job = on.job](void*) {}, options, on.device);
}

// The rows of the rank's queries, by entry: Q, OUT, or LSE without its last dim.
std::vector<at::Tensor> RowsOf(const JobOn& on, const TensorBuffer& buffer, v1::TensorId tensor) {
  const RankAssignment& assignment = on.job->assignment;
  const v1::AttentionSpec& spec = assignment.spec;
  const bool lse = tensor == v1::TENSOR_ID_LSE;
  const at::ScalarType number = ToScalarType(spec.dtype());
  const at::ScalarType type = !lse ? number : number == at::kDouble ? at::kDouble : at::kFloat;
  const int64_t batch = assignment.q_rows.size() == 1 ? spec.batch() : 1;
  const int64_t heads = spec.q_heads();
  const int64_t dim = lse ? 1 : tensor == v1::TENSOR_ID_Q ? spec.head_dim() : ValueDim(spec);
  std::vector<at::Tensor> entries;
  uint64_t begin = 0;
  for (const int64_t rows : assignment.q_rows) {
    const at::Tensor view =
        View(on, buffer.data, begin, lse || IsHeadMajor(spec), {batch, heads, rows, dim}, type);
    entries.push_back(lse ? view.squeeze(-1) : view);
    begin += batch * heads * rows * dim * c10::elementSize(type);
  }
  return entries;
}

at::Tensor BytesOf(const JobOn& on, const TensorBuffer& buffer) {
  const int64_t size = static_cast<int64_t>(buffer.size);
  return View(on, buffer.data, 0, true, {1, 1, 1, size}, at::kByte).view({size});
}

at::Tensor PerHead(const JobOn& on, const TensorBuffer& buffer) {
  const int64_t heads = on.job->assignment.spec.q_heads();
  return View(on, buffer.data, 0, true, {1, 1, 1, heads}, at::kFloat).view({heads});
}

void AddExtras(const JobOn& on, std::vector<at::Tensor>& bias, at::Tensor& alibi_slopes,
               at::Tensor& sink_logits) {
  const RankAssignment& assignment = on.job->assignment;
  const v1::AttentionSpec& spec = assignment.spec;
  if (spec.has_bias()) {
    const TensorShape shape = ShapeOf(v1::TENSOR_ID_BIAS, spec);
    const at::ScalarType type = spec.bias().boolean() ? at::kByte : ToScalarType(spec.dtype());
    const int64_t batch = assignment.q_rows.size() == 1 ? shape.batch : 1;
    uint64_t begin = 0;
    for (size_t i = 0; i < assignment.q_rows.size(); ++i) {
      bias.push_back(View(on, on.job->bias.data, begin, true,
                          {batch, shape.planes_per_batch, assignment.q_rows[i], spec.kv_len()},
                          type));
      begin += assignment.bias_blocks[i];
    }
  }
  if (spec.alibi_slopes()) alibi_slopes = PerHead(on, on.job->slopes);
  if (spec.sink_logits()) sink_logits = PerHead(on, on.job->sinks);
}

}  // namespace

RankTensors MakeTensors(const std::shared_ptr<RankJob>& job, at::Device device) {
  const JobOn on{job, device};
  RankTensors tensors;
  tensors.q = RowsOf(on, job->q, v1::TENSOR_ID_Q);
  tensors.out = RowsOf(on, job->out, v1::TENSOR_ID_OUT);
  tensors.lse = RowsOf(on, job->lse, v1::TENSOR_ID_LSE);
  AddExtras(on, tensors.bias, tensors.alibi_slopes, tensors.sink_logits);
  tensors.q_bytes = BytesOf(on, job->q);
  tensors.kv = BytesOf(on, job->kv);
  return tensors;
}

BackwardTensors MakeBackwardTensors(const std::shared_ptr<RankJob>& job, at::Device device) {
  const JobOn on{job, device};
  BackwardTensors tensors;
  tensors.q = RowsOf(on, job->q, v1::TENSOR_ID_Q);
  tensors.kv = BytesOf(on, job->kv);
  tensors.out = RowsOf(on, job->out, v1::TENSOR_ID_OUT);
  tensors.lse = RowsOf(on, job->lse, v1::TENSOR_ID_LSE);
  tensors.d_out = RowsOf(on, job->d_out, v1::TENSOR_ID_OUT);
  if (job->assignment.pass.d_lse) tensors.d_lse = RowsOf(on, job->d_lse, v1::TENSOR_ID_LSE);
  AddExtras(on, tensors.bias, tensors.alibi_slopes, tensors.sink_logits);
  tensors.d_q = RowsOf(on, job->d_q, v1::TENSOR_ID_Q);
  tensors.d_kv = BytesOf(on, job->d_kv);
  if (job->d_sinks.size > 0) tensors.d_sink_logits = PerHead(on, job->d_sinks);
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
