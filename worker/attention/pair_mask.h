// The dense mask of a piece of a tile, by tensor operations: what is added to the scaled scores.
#pragma once

#include <ATen/ATen.h>

#include "worker/attention/rank_plan.h"
#include "worker/attention/score_terms.h"

namespace ringserve {

// Whether there is a bias of numbers: one of bool or of bytes hides.
bool AddsBias(const ScoreTerms& terms);

// [B or 1, Hq or 1, queries, keys] of `type` on `device`: -inf where `piece` or a bias hides the
// pair, else the bias, and for ALiBi -slope |distance|, computed in `type`, which holds the bias
// exactly. `terms` are the piece's own (TermsOf). Each row's memory begins on 16 bytes.
at::Tensor PairMask(const Tile& piece, const ScoreTerms& terms, at::ScalarType type,
                    at::Device device);

}  // namespace ringserve
