// One tile: one block of queries against one block of keys, added into the accumulator that the
// ring carries. By flash_block.h; fp64 by LibTorch's CPU flash kernel and a merge. Decides nothing
// about what is visible: the tile's band does.
#pragma once

#include <ATen/ATen.h>

#include "worker/attention/partial.h"
#include "worker/attention/rank_plan.h"
#include "worker/attention/score_terms.h"

namespace ringserve {

// The most queries and keys for which a dense mask is made at once (fp64).
inline constexpr int64_t kMostMaskedQueries = 512;
inline constexpr int64_t kMostMaskedKeys = 1152;

// Adds the visible pairs of `tile` to `into`. q [B, Hq, Sq, D], k [B, Hkv, Sk, D], v [B, Hkv, Sk,
// Dv]: the local views of the batch rows that tile.batch_row names, last dim contiguous; tile rows
// count in them. Hq is a multiple of Hkv; heads are never repeated. D and Dv may differ. `scale`
// is positive: LibTorch's kernel hides pairs before it multiplies by it. Rows of the tile that see
// no key leave `into` as it was. terms.bias is [B or 1, Hq or 1, Sq, keys of the request], of which
// tile.k_position is the first that is read; tile.distance stands for terms.distance. Throws what
// LibTorch throws.
void Accumulate(const Partial& into, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                const Tile& tile, double scale, const ScoreTerms& terms = {});

// Of terms as above: those of the tile's own queries and keys.
ScoreTerms TermsOf(const Tile& tile, const ScoreTerms& terms);

// Throws unless they are terms of such types as fit `q`.
void CheckTerms(const ScoreTerms& terms, const at::Tensor& q);

}  // namespace ringserve
