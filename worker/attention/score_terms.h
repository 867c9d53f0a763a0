// What is added to the scaled scores of queries against keys, beside the mask: a bias, ALiBi slopes
// (Press et al., "Train Short, Test Long", arXiv 2108.12409). Owns nothing but references.
#pragma once

#include <cstdint>

#include <ATen/ATen.h>

namespace ringserve {

struct ScoreTerms {
  // Undefined, or [B or 1, Hq or 1, queries, keys], last dim contiguous: of the type of q it is
  // added; of bool or of bytes it hides where it is 0. A pair of -inf is hidden, too.
  at::Tensor bias;
  // Undefined, or fp32 [Hq], contiguous: -slope |distance + i - j| is added for query i and key j.
  at::Tensor alibi_slopes;
  int64_t distance = 0;

  bool any() const { return bias.defined() || alibi_slopes.defined(); }
};

}  // namespace ringserve
