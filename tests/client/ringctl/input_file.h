// Input files for `ringctl attend` and `plan`.
#pragma once

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "client/ringctl/safetensors_writer.h"
#include "ringserve/v1/attention.pb.h"
#include "tests/support/oracle.h"

namespace ringserve::test {

// Writes RandomInputs(spec, seed) as q, k and v of a safetensors file. `spec` has its value_dim.
inline void WriteInputFile(const std::string& path, const v1::AttentionSpec& spec, uint64_t seed) {
  const std::string dtype = v1::DType_Name(spec.dtype()).substr(sizeof("DTYPE_") - 1);
  const auto shape = [&](int64_t heads, int64_t length, int64_t dim) {
    return spec.tensor_layout() == v1::TENSOR_LAYOUT_BSHD
               ? std::vector<int64_t>{spec.batch(), length, heads, dim}
               : std::vector<int64_t>{spec.batch(), heads, length, dim};
  };
  const Inputs inputs = RandomInputs(spec, seed);
  const auto writer = SafetensorsWriter::Create(
      path, {{"q", dtype, shape(spec.q_heads(), spec.q_len(), spec.head_dim())},
             {"k", dtype, shape(spec.kv_heads(), spec.kv_len(), spec.head_dim())},
             {"v", dtype, shape(spec.kv_heads(), spec.kv_len(), spec.value_dim())}});
  if (!writer.ok()) throw std::runtime_error(writer.status().ToString());
  std::ranges::copy(inputs.q, (*writer)->bytes(0).begin());
  std::ranges::copy(inputs.k, (*writer)->bytes(1).begin());
  std::ranges::copy(inputs.v, (*writer)->bytes(2).begin());
  const absl::Status status = (*writer)->Commit();
  if (!status.ok()) throw std::runtime_error(status.ToString());
}

}  // namespace ringserve::test
