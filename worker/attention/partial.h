// Partials: (out, lse) over some of the keys, and how two of them become one.
#pragma once

#include <cstdint>

#include <ATen/ATen.h>

namespace ringserve {

// What numbers of `type` are accumulated in: fp64 for fp64, else fp32.
inline at::ScalarType WideType(at::ScalarType type) {
  return type == at::kDouble ? at::kDouble : at::kFloat;
}

// For a block of queries: `out` is the softmax-weighted mean of the values seen so far, `lse` the
// natural log of the sum of exp of their scores. Views, any strides; the last dim of `out` is
// contiguous. Where lse is -inf nothing was seen, and `out` holds anything: it is never read there.
//
// With a `total` a partial is still open: its out is out / total, its lse lse + log(total). So
// nothing is rounded to an lse between one block of keys and the next.
struct Partial {
  at::Tensor out;         // [B, Hq, Sq, Dv]
  at::Tensor lse;         // [B, Hq, Sq]
  at::Tensor total = {};  // undefined, or as lse

  // The same memory, fewer rows.
  Partial Queries(int64_t begin, int64_t end) const;
};

// Nothing seen yet, in any row: lse -inf. Does not touch `out`.
void Clear(const Partial& partial);

// Closes an open partial of fp32 in the processor's memory: out and lse are then what they say,
// `total` is done with.
void Settle(const Partial& partial);

// `into` takes `part` of the same shape in, both closed:
//   m = max(l1, l2); lse = m + log(e^(l1-m) + e^(l2-m)); out = sum of out_i e^(l_i - lse)
// All four tensors fp32, or all fp64. Rows that `part` did not see stay as they were.
void Merge(const Partial& into, const Partial& part);

// Merge by tensor operations, of which it takes a few times as long on a processor. Holds a copy of
// part.out meanwhile.
void MergeOnAnyDevice(const Partial& into, const Partial& part);

// One more score of each row, sink_logits[h] (fp32 [Hq]), whose value is 0:
//   lse' = log(e^lse + e^sink); out' = out e^(lse - lse')
// Rows that saw nothing get out 0 and lse' = sink. `keep_lse`: lse stays as it is. A logit of -inf
// changes nothing. As Finalize, waits for the device.
void AddSinks(const Partial& partial, const at::Tensor& sink_logits, bool keep_lse);

// What the ring carried becomes the answer: out in the type of `out`, 0 for rows that saw nothing.
// `out` may be the very memory of accumulated.out.
void Finalize(const Partial& accumulated, const at::Tensor& out);

}  // namespace ringserve
