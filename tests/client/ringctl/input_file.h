// Input files for `ringctl attend` and `plan`.
#pragma once

#include <algorithm>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "client/ringctl/safetensors_writer.h"
#include "ringserve/v1/attention.pb.h"
#include "tests/support/oracle.h"

namespace ringserve::test {

// Writes RandomInputs(spec, seed) as q, k and v of a safetensors file, with what the spec has of
// bias, alibi_slopes and sink_logits. `spec` has its value_dim.
inline void WriteInputFile(const std::string& path, const v1::AttentionSpec& spec, uint64_t seed) {
  const std::string dtype = v1::DType_Name(spec.dtype()).substr(sizeof("DTYPE_") - 1);
  const auto shape = [&](int64_t heads, int64_t length, int64_t dim) {
    return spec.tensor_layout() == v1::TENSOR_LAYOUT_BSHD
               ? std::vector<int64_t>{spec.batch(), length, heads, dim}
               : std::vector<int64_t>{spec.batch(), heads, length, dim};
  };
  const Inputs inputs = RandomInputs(spec, seed);
  std::vector<SafetensorsWriter::Tensor> tensors = {
      {"q", dtype, shape(spec.q_heads(), spec.q_len(), spec.head_dim())},
      {"k", dtype, shape(spec.kv_heads(), spec.kv_len(), spec.head_dim())},
      {"v", dtype, shape(spec.kv_heads(), spec.kv_len(), spec.value_dim())}};
  std::vector<std::span<const std::byte>> bytes = {inputs.q, inputs.k, inputs.v};
  if (spec.has_bias()) {
    const v1::Bias& bias = spec.bias();
    tensors.push_back({"bias",
                       bias.boolean() ? "U8" : dtype,
                       {bias.per_batch() ? spec.batch() : 1, bias.per_head() ? spec.q_heads() : 1,
                        spec.q_len(), spec.kv_len()}});
    bytes.push_back(inputs.bias);
  }
  if (spec.alibi_slopes()) {
    tensors.push_back({"alibi_slopes", "F32", {spec.q_heads()}});
    bytes.push_back(inputs.alibi_slopes);
  }
  if (spec.sink_logits()) {
    tensors.push_back({"sink_logits", "F32", {spec.q_heads()}});
    bytes.push_back(inputs.sink_logits);
  }
  const auto writer = SafetensorsWriter::Create(path, tensors);
  if (!writer.ok()) throw std::runtime_error(writer.status().ToString());
  for (size_t i = 0; i < bytes.size(); ++i)
    std::ranges::copy(bytes[i], (*writer)->bytes(i).begin());
  const absl::Status status = (*writer)->Commit();
  if (!status.ok()) throw std::runtime_error(status.ToString());
}

}  // namespace ringserve::test
