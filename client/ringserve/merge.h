// Merges partials: what attention over some of the keys gave, with its log-sum-exp, becomes
// attention over all of them. So a caller may ask several servers, or add what it computed itself
// (a local window, say), and get the exact whole.
//
//   ringserve::MergePartials(shape, {out, lse}, {other_out, other_lse});  // {out, lse}: the whole
//
// The parts' keys must be disjoint, which nothing here can check: a key in both counts twice.
#pragma once

#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "ringserve/v1/attention.pb.h"

namespace ringserve {

// Of both partials. `out` is dense [batch, heads, queries, value_dim], or with TENSOR_LAYOUT_BSHD
// [batch, queries, heads, value_dim]; `lse` is dense [batch, heads, queries] in every layout.
struct PartialShape {
  int64_t batch = 1, heads = 1, queries = 1, value_dim = 1;  // each >= 1; heads: those of q
  v1::TensorLayout layout = v1::TENSOR_LAYOUT_BHSD;
};

// `out` is the softmax-weighted mean of the values of the keys seen, `lse` the natural log of the
// sum of exp of their scaled scores, as Attend returns them (options.return_lse). Where lse is -inf
// no key was seen, and `out` is not read.
template <typename T>
struct PartialSpans {
  std::span<T> out, lse;
};

// Takes `part` into `into`, row by row:
//   m = max(l1, l2); lse = m + log(e^(l1-m) + e^(l2-m)); out = sum of out_i e^(l_i - lse)
// A row that neither saw becomes the identity: out 0, lse -inf; one that only one of them saw is
// that one's, bit for bit. NaN in what is read stays NaN. Computed in fp64 and rounded once, so
// that the order of several merges matters by rounding alone. Does not block; uses the calling
// thread.
//
// Results in bf16 or f16 have to be widened to f32 first: their lse is f32 as it comes.
//
// INVALID_ARGUMENT, and nothing is written: a dim below 1, an unknown layout, a span of another
// size than the shape says, spans of `into` that overlap each other or `part`. Names span, size and
// what was expected.
absl::Status MergePartials(const PartialShape& shape, PartialSpans<float> into,
                           PartialSpans<const float> part);
absl::Status MergePartials(const PartialShape& shape, PartialSpans<double> into,
                           PartialSpans<const double> part);

}  // namespace ringserve
