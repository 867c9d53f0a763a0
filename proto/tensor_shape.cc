#include "proto/tensor_shape.h"

#include <cassert>
#include <cmath>

#include "absl/strings/str_cat.h"

namespace ringserve {

int64_t ElementBytes(v1::DType dtype) {
  switch (dtype) {
    case v1::DTYPE_F32:
      return 4;
    case v1::DTYPE_F64:
      return 8;
    case v1::DTYPE_BF16:
      return 2;
    case v1::DTYPE_F16:
      return 2;
    default:
      return 0;
  }
}

int64_t LseElementBytes(v1::DType dtype) { return dtype == v1::DTYPE_F64 ? 8 : 4; }

int64_t ValueDim(const v1::AttentionSpec& spec) {
  return spec.value_dim() != 0 ? spec.value_dim() : spec.head_dim();
}

double Scale(const v1::AttentionSpec& spec) {
  return spec.has_scale() ? spec.scale() : 1 / std::sqrt(static_cast<double>(spec.head_dim()));
}

bool IsHeadMajor(const v1::AttentionSpec& spec) {
  return spec.tensor_layout() != v1::TENSOR_LAYOUT_BSHD;
}

TensorShape ShapeOf(v1::TensorId tensor, const v1::AttentionSpec& spec) {
  int64_t heads = 0, rows = 0, dim = 0;
  switch (tensor) {
    case v1::TENSOR_ID_Q:
    case v1::TENSOR_ID_D_Q:
      heads = spec.q_heads(), rows = spec.q_len(), dim = spec.head_dim();
      break;
    case v1::TENSOR_ID_K:
    case v1::TENSOR_ID_D_K:
      heads = spec.kv_heads(), rows = spec.kv_len(), dim = spec.head_dim();
      break;
    case v1::TENSOR_ID_V:
    case v1::TENSOR_ID_D_V:
      heads = spec.kv_heads(), rows = spec.kv_len(), dim = ValueDim(spec);
      break;
    case v1::TENSOR_ID_OUT:
    case v1::TENSOR_ID_D_OUT:
      heads = spec.q_heads(), rows = spec.q_len(), dim = ValueDim(spec);
      break;
    case v1::TENSOR_ID_LSE:
    case v1::TENSOR_ID_D_LSE:
      return {spec.batch(), spec.q_heads(), spec.q_len(), LseElementBytes(spec.dtype())};
    case v1::TENSOR_ID_BIAS:
      return {spec.bias().per_batch() ? spec.batch() : 1,
              spec.bias().per_head() ? spec.q_heads() : 1, spec.q_len(),
              spec.kv_len() * (spec.bias().boolean() ? 1 : ElementBytes(spec.dtype()))};
    case v1::TENSOR_ID_ALIBI_SLOPES:
    case v1::TENSOR_ID_SINK_LOGITS:
    case v1::TENSOR_ID_D_SINK_LOGITS:
      return {1, 1, spec.q_heads(), sizeof(float)};
    default:
      assert(false && "no tensor of a request");
      return {};
  }
  const int64_t element = ElementBytes(spec.dtype());
  if (IsHeadMajor(spec)) return {spec.batch(), heads, rows, dim * element};
  return {spec.batch(), 1, rows, heads * dim * element};
}

std::vector<v1::TensorId> UploadsOf(const v1::AttentionSpec& spec, Pass pass) {
  std::vector<v1::TensorId> tensors = {v1::TENSOR_ID_Q, v1::TENSOR_ID_K, v1::TENSOR_ID_V};
  if (pass.backward) {
    for (const v1::TensorId tensor : {v1::TENSOR_ID_OUT, v1::TENSOR_ID_LSE, v1::TENSOR_ID_D_OUT})
      tensors.push_back(tensor);
    if (pass.d_lse) tensors.push_back(v1::TENSOR_ID_D_LSE);
  }
  if (spec.has_bias()) tensors.push_back(v1::TENSOR_ID_BIAS);
  if (spec.alibi_slopes()) tensors.push_back(v1::TENSOR_ID_ALIBI_SLOPES);
  if (spec.sink_logits()) tensors.push_back(v1::TENSOR_ID_SINK_LOGITS);
  return tensors;
}

std::vector<v1::TensorId> ResultsOf(const v1::AttentionSpec& spec, Pass pass, bool return_lse) {
  if (!pass.backward) {
    if (!return_lse) return {v1::TENSOR_ID_OUT};
    return {v1::TENSOR_ID_OUT, v1::TENSOR_ID_LSE};
  }
  std::vector<v1::TensorId> tensors = {v1::TENSOR_ID_D_Q, v1::TENSOR_ID_D_K, v1::TENSOR_ID_D_V};
  if (spec.sink_logits()) tensors.push_back(v1::TENSOR_ID_D_SINK_LOGITS);
  return tensors;
}

bool IsOfKeys(v1::TensorId tensor) {
  return tensor == v1::TENSOR_ID_K || tensor == v1::TENSOR_ID_V || tensor == v1::TENSOR_ID_D_K ||
         tensor == v1::TENSOR_ID_D_V;
}

bool IsPerHead(v1::TensorId tensor) {
  return tensor == v1::TENSOR_ID_ALIBI_SLOPES || tensor == v1::TENSOR_ID_SINK_LOGITS ||
         tensor == v1::TENSOR_ID_D_SINK_LOGITS;
}

bool ScoresByPosition(const v1::AttentionSpec& spec) {
  return spec.has_bias() || spec.alibi_slopes();
}

std::string TensorName(v1::TensorId tensor) {
  switch (tensor) {
    case v1::TENSOR_ID_Q:
      return "q";
    case v1::TENSOR_ID_K:
      return "k";
    case v1::TENSOR_ID_V:
      return "v";
    case v1::TENSOR_ID_OUT:
      return "out";
    case v1::TENSOR_ID_LSE:
      return "lse";
    case v1::TENSOR_ID_BIAS:
      return "bias";
    case v1::TENSOR_ID_ALIBI_SLOPES:
      return "alibi_slopes";
    case v1::TENSOR_ID_SINK_LOGITS:
      return "sink_logits";
    case v1::TENSOR_ID_D_OUT:
      return "d_out";
    case v1::TENSOR_ID_D_LSE:
      return "d_lse";
    case v1::TENSOR_ID_D_Q:
      return "d_q";
    case v1::TENSOR_ID_D_K:
      return "d_k";
    case v1::TENSOR_ID_D_V:
      return "d_v";
    case v1::TENSOR_ID_D_SINK_LOGITS:
      return "d_sink_logits";
    default:
      return absl::StrCat("tensor ", static_cast<int>(tensor));
  }
}

}  // namespace ringserve
