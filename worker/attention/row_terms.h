// Tensors [B, H, S, ...] and ScoreTerms by their rows, for loops over bare numbers.
#pragma once

#include <cstdint>

#include <ATen/ATen.h>

#include "worker/attention/score_rows.h"
#include "worker/attention/score_terms.h"

namespace ringserve {

template <typename Number>
struct Rows {
  const Number* data;
  int64_t batch, head, row;  // strides

  explicit Rows(const at::Tensor& t)
      : data(static_cast<const Number*>(t.const_data_ptr())),
        batch(t.stride(0)),
        head(t.stride(1)),
        row(t.stride(2)) {}
  const Number* At(int64_t b, int64_t h, int64_t i) const {
    return data + b * batch + h * head + i * row;
  }
};

// Number: what q, k and a bias consist of.
template <typename Number>
class RowTerms {
 public:
  RowTerms(const ScoreTerms& terms, const at::Tensor& q, const at::Tensor& k)
      : slopes_(terms.alibi_slopes), distance_(terms.distance) {
    if (!terms.bias.defined()) return;
    hides_ = terms.bias.scalar_type() != q.scalar_type();
    bias_ = terms.bias.expand({q.size(0), q.size(1), q.size(2), k.size(2)});
  }

  bool any() const { return slopes_.defined() || bias_.defined(); }

  // Scores of the query against the keys from `key` on: multiplied by `scale`, then added to.
  template <typename Wide>
  void AddTo(Wide* scores, int64_t b, int64_t head, int64_t query, int64_t key, int64_t n,
             Wide scale) const {
    if (slopes_.defined()) {
      AddDistances(scores, n, scale, slopes_.const_data_ptr<float>()[head],
                   distance_ + query - key);
      scale = 1;
    }
    if (!bias_.defined()) return;
    const int64_t at = b * bias_.stride(0) + head * bias_.stride(1) + query * bias_.stride(2) + key;
    const void* const bias = bias_.const_data_ptr();
    hides_ ? Hide(scores, static_cast<const uint8_t*>(bias) + at, n, scale)
           : AddBias(scores, static_cast<const Number*>(bias) + at, n, scale);
  }

 private:
  const at::Tensor slopes_;
  const int64_t distance_;
  at::Tensor bias_;  // of all batch rows and heads
  bool hides_ = false;
};

}  // namespace ringserve
