// The arithmetic of one tile: one block of queries against one block of keys, on the device where
// the tensors lie. What the ring loops need of a device beside tensor operations. Decides nothing
// about what is visible: the tile's band does.
#pragma once

#include <ATen/ATen.h>

#include "worker/attention/partial.h"
#include "worker/attention/rank_plan.h"
#include "worker/attention/score_terms.h"

namespace ringserve {

struct AnsweredQueries;
struct Gradients;

// Called by one thread at a time, on the device's present stream: what is given may be on its way
// there. Throws what LibTorch throws.
class Block {
 public:
  virtual ~Block() = default;

  // Whether the accumulators of numbers of `type` are to be open (partial.h).
  virtual bool KeepsOpen(at::ScalarType type) const = 0;

  // Adds the visible pairs of `tile` to `into`. q [B, Hq, Sq, D], k [B, Hkv, Sk, D], v [B, Hkv, Sk,
  // Dv]: the local views of the batch rows that tile.batch_row names, last dim contiguous; tile
  // rows count in them. Hq is a multiple of Hkv; heads are never repeated. D and Dv may differ.
  // `scale` is positive: kernels hide pairs before they multiply by it. Rows of the tile that see
  // no key leave `into` as it was. terms.bias is [B or 1, Hq or 1, Sq, keys of the request], of
  // which tile.k_position is the first that is read; tile.distance stands for terms.distance.
  virtual void Accumulate(const Partial& into, const at::Tensor& q, const at::Tensor& k,
                          const at::Tensor& v, const Tile& tile, double scale,
                          const ScoreTerms& terms) const = 0;

  // Adds what the visible pairs of `tile` give to `into` (backward_block.h), of q, k and v as
  // above, with any `scale`.
  virtual void AccumulateGradients(const Gradients& into, const AnsweredQueries& queries,
                                   const at::Tensor& k, const at::Tensor& v, const Tile& tile,
                                   double scale, const ScoreTerms& terms) const = 0;
};

// Of terms as above: those of the tile's own queries and keys.
ScoreTerms TermsOf(const Tile& tile, const ScoreTerms& terms);

// Throws unless they are terms of such types as fit `q`.
void CheckTerms(const ScoreTerms& terms, const at::Tensor& q);

}  // namespace ringserve
