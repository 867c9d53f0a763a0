// Attention and its gradients by matrix products and tensor operations, on any device: for numbers
// that no kernel takes, and for what kernels do not tell. All arithmetic is fp32 (fp64 numbers:
// fp64). Pieces are to be small: every score is in memory at once.
#pragma once

#include <ATen/ATen.h>

#include "worker/attention/backward_block.h"
#include "worker/attention/partial.h"

namespace ringserve {

// q [B, Hq, Sq, D], k [B, Hkv, Sk, D], v [B, Hkv, Sk, Dv] of one type, any strides; Hq is a
// multiple of Hkv. `mask` is undefined, or of the wide type, [B or 1, Hq or 1, Sq, Sk]: it is added
// to the scaled scores. Holds B Hq Sq Sk scores, and wide copies of what is given.
Partial AttendByProducts(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                         const at::Tensor& mask, double scale);

// What these queries and keys give, added to `into` as backward_block.h says: all are of the same
// rows. Pairs whose mask is -inf, and queries whose lse is, give nothing. Holds twice as much.
void AddGradientsByProducts(const Gradients& into, const AnsweredQueries& queries,
                            const at::Tensor& k, const at::Tensor& v, const at::Tensor& mask,
                            double scale);

}  // namespace ringserve
