// A request's tensors as fp64 numbers: for the oracles alone.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "ringserve/v1/attention.pb.h"
#include "tests/support/elements.h"
#include "tests/support/oracle.h"

namespace ringserve::test {

inline constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Where element [b, h, s, 0] of a dense tensor is.
struct Strides {
  bool head_major = true;
  int64_t heads = 0, rows = 0, dim = 0;

  int64_t At(int64_t b, int64_t h, int64_t s) const {
    return (head_major ? (b * heads + h) * rows + s : (b * rows + s) * heads + h) * dim;
  }
};

struct Dims {
  explicit Dims(const v1::AttentionSpec& spec)
      : value_dim(spec.value_dim() != 0 ? spec.value_dim() : spec.head_dim()),
        scale(spec.has_scale() ? spec.scale()
                               : 1 / std::sqrt(static_cast<double>(spec.head_dim()))) {
    const bool head_major = spec.tensor_layout() != v1::TENSOR_LAYOUT_BSHD;
    q = {head_major, spec.q_heads(), spec.q_len(), spec.head_dim()};
    k = {head_major, spec.kv_heads(), spec.kv_len(), spec.head_dim()};
    v = {head_major, spec.kv_heads(), spec.kv_len(), value_dim};
    out = {head_major, spec.q_heads(), spec.q_len(), value_dim};
  }

  int64_t value_dim;
  double scale;
  Strides q, k, v, out;
};

inline double Dot(const double* a, const double* b, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

// The largest length of a row.
inline double LargestNorm(const std::vector<double>& values, int64_t dim) {
  double largest = 0;
  for (size_t i = 0; i < values.size(); i += dim) {
    largest = std::max(largest, Dot(&values[i], &values[i], dim));
  }
  return std::sqrt(largest);
}

// What a request adds to its scores, and takes from its rows, beside the mask.
class Extras {
 public:
  Extras(const v1::AttentionSpec& spec, const Inputs& inputs, const Distance& distance)
      : spec_(spec), distance_(distance) {
    if (spec.has_bias() && !spec.bias().boolean()) bias_ = ToDoubles(inputs.bias, spec.dtype());
    if (spec.has_bias() && spec.bias().boolean()) {
      for (const std::byte shown : inputs.bias)
        bias_.push_back(shown == std::byte{0} ? -kInfinity : 0);
    }
    if (spec.alibi_slopes()) slopes_ = ToDoubles(inputs.alibi_slopes, v1::DTYPE_F32);
    if (spec.sink_logits()) sinks_ = ToDoubles(inputs.sink_logits, v1::DTYPE_F32);
  }

  // To the score of a visible pair; -inf hides it.
  double Of(int64_t b, int64_t h, int64_t q, int64_t k) const {
    double sum = 0;
    if (!slopes_.empty()) sum -= slopes_.at(h) * static_cast<double>(distance_(b, q, k));
    if (!bias_.empty()) {
      const int64_t batch_row = spec_.bias().per_batch() ? b : 0;
      const int64_t heads = spec_.bias().per_head() ? spec_.q_heads() : 1;
      const int64_t head = spec_.bias().per_head() ? h : 0;
      sum += bias_.at(((batch_row * heads + head) * spec_.q_len() + q) * spec_.kv_len() + k);
    }
    return sum;
  }

  // A further key of value 0 whose score is the head's logit. Returns the new lse.
  double AddSink(int64_t h, double lse, std::span<double> out) const {
    if (sinks_.empty() || sinks_.at(h) == -kInfinity) return lse;
    const double larger = std::max(lse, sinks_[h]);
    const double with = larger + std::log(std::exp(lse - larger) + std::exp(sinks_[h] - larger));
    for (double& value : out) value *= std::exp(lse - with);
    return with;
  }

  double LargestSink() const {
    double largest = 0;
    for (const double sink : sinks_) {
      if (std::isfinite(sink)) largest = std::max(largest, std::abs(sink));
    }
    return largest;
  }

 private:
  const v1::AttentionSpec& spec_;
  const Distance& distance_;
  std::vector<double> bias_, slopes_, sinks_;  // empty: the request has none
};

inline v1::DType LseType(v1::DType dtype) {
  return dtype == v1::DTYPE_F64 ? v1::DTYPE_F64 : v1::DTYPE_F32;
}

// LibTorch's own: of the narrow types it takes an exp that is good to 14 bits, and too small even
// where it stands for 1.
inline double ExpErrorFor(v1::DType dtype) {
  switch (dtype) {
    case v1::DTYPE_F64:
      return 0x1p-51;
    case v1::DTYPE_F32:
      return 0x1p-20;
    default:
      return 0x1p-13;
  }
}

}  // namespace ringserve::test
