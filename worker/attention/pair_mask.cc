#include "worker/attention/pair_mask.h"

#include <limits>

#include "worker/attention/tile_pieces.h"

namespace ringserve {
namespace {

constexpr double kHiddenPair = -std::numeric_limits<double>::infinity();

}  // namespace

bool AddsBias(const ScoreTerms& terms) {
  return terms.bias.defined() && terms.bias.scalar_type() != at::kBool &&
         terms.bias.scalar_type() != at::kByte;
}

at::Tensor PairMask(const Tile& piece, const ScoreTerms& terms, at::ScalarType type,
                    at::Device device) {
  constexpr int64_t kAlignedNumbers = 8;
  const at::TensorOptions on_device = at::TensorOptions().device(device);
  const int64_t queries = Queries(piece), keys = Keys(piece);
  const int64_t batch = terms.bias.defined() ? terms.bias.size(0) : 1;
  const int64_t heads = terms.alibi_slopes.defined() ? terms.alibi_slopes.size(0)
                        : terms.bias.defined()       ? terms.bias.size(1)
                                                     : 1;
  const int64_t row = (keys + kAlignedNumbers - 1) / kAlignedNumbers * kAlignedNumbers;
  const at::Tensor mask =
      at::empty({batch, heads, queries, row}, on_device.dtype(type)).narrow(3, 0, keys);
  // key - query, both counted from the corner.
  const at::Tensor diagonal = at::arange(keys, on_device.dtype(at::kLong)) -
                              at::arange(queries, on_device.dtype(at::kLong)).unsqueeze(1);
  const bool adds = AddsBias(terms);
  adds ? mask.copy_(terms.bias) : mask.zero_();
  if (terms.alibi_slopes.defined()) {
    mask.sub_(terms.alibi_slopes.to(type).view({1, -1, 1, 1}) *
              (diagonal - terms.distance).abs_().to(type));
  }
  if (terms.bias.defined() && !adds) mask.masked_fill_(terms.bias.eq(0), kHiddenPair);
  if (piece.lo) mask.masked_fill_(diagonal.lt(*piece.lo), kHiddenPair);
  if (piece.hi) mask.masked_fill_(diagonal.gt(*piece.hi), kHiddenPair);
  return mask;
}

}  // namespace ringserve
