// One tile's part of the gradients: one block of queries against one block of keys, with the
// log-sum-exp of all keys. Dao et al., FlashAttention, arXiv 2205.14135, algorithm 4:
//   P = e^(scale q k^T + terms - lse)    dV += P^T dO    dP = dO V^T    dS = P (dP - delta)
//   dQ += scale dS K    dK += scale dS^T Q    delta = rowsum(dO O) - dlse
// All arithmetic is fp32 (fp64 numbers: fp64), whatever the type of the numbers. Decides nothing
// about what is visible: the tile's band and the bias do.
#pragma once

#include <ATen/ATen.h>

#include "worker/attention/rank_plan.h"
#include "worker/attention/score_terms.h"

namespace ringserve {

// What gradients are added into: fp32 (fp64 numbers: fp64), last dim contiguous. No memory is in
// two of their rows.
struct Gradients {
  at::Tensor d_q;  // as q
  at::Tensor d_k;  // as k
  at::Tensor d_v;  // as v
};

// What the forward pass left, and the gradient of its answer.
struct AnsweredQueries {
  at::Tensor q;      // [B, Hq, Sq, D]
  at::Tensor d_out;  // [B, Hq, Sq, Dv], type of q
  at::Tensor lse;    // [B, Hq, Sq], accumulated type: of all keys, sink logits included
  at::Tensor delta;  // likewise, see RowDeltas
};

// rowsum(d_out * out) - d_lse: [B, Hq, Sq], accumulated type, contiguous. `d_lse` may be undefined.
at::Tensor RowDeltas(const at::Tensor& out, const at::Tensor& d_out, const at::Tensor& d_lse);

// Gradients of the sink logits (fp32 [Hq]) that these rows give: -sum of e^(sink - lse) delta, of
// accumulated type. Rows whose lse is -inf give none.
at::Tensor SinkGradients(const at::Tensor& sink_logits, const at::Tensor& lse,
                         const at::Tensor& delta);

// Throws unless they are of the types and shapes said above.
void CheckGradients(const Gradients& into, const AnsweredQueries& queries, const at::Tensor& k,
                    const at::Tensor& v);

// The processor's: adds what the visible pairs of `tile` give. k [B, Hkv, Sk, D], v [B, Hkv, Sk,
// Dv], of the type of q; as for Block::Accumulate tile rows count in these views and terms are the
// rank's. Any `scale`. Rows whose lse is -inf give nothing and get nothing, whatever d_out is
// there. Takes per thread of LibTorch less than 4 MiB (fp64: 8). The same bits for the same tile,
// number of threads and processor. What is not finite in a row reaches at most the rows that share
// a block of 128 queries and 512 keys with it. Throws what LibTorch throws.
void AccumulateGradients(const Gradients& into, const AnsweredQueries& queries, const at::Tensor& k,
                         const at::Tensor& v, const Tile& tile, double scale,
                         const ScoreTerms& terms = {});

}  // namespace ringserve
