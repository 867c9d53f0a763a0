#include "worker/attention/block.h"

#include "worker/attention/tile_pieces.h"

namespace ringserve {

ScoreTerms TermsOf(const Tile& tile, const ScoreTerms& terms) {
  ScoreTerms of_tile = terms;
  of_tile.distance = tile.distance;
  if (terms.bias.defined()) {
    of_tile.bias =
        terms.bias.narrow(2, tile.q_begin, Queries(tile)).narrow(3, tile.k_position, Keys(tile));
  }
  return of_tile;
}

void CheckTerms(const ScoreTerms& terms, const at::Tensor& q) {
  TORCH_CHECK(
      !terms.alibi_slopes.defined() ||
          (terms.alibi_slopes.scalar_type() == at::kFloat && terms.alibi_slopes.is_contiguous() &&
           terms.alibi_slopes.sizes() == q.sizes().slice(1, 1)),
      "ALiBi slopes are not fp32, one for each head");
  if (!terms.bias.defined()) return;
  const at::ScalarType type = terms.bias.scalar_type();
  TORCH_CHECK(type == q.scalar_type() || type == at::kBool || type == at::kByte, "a bias of ", type,
              " for ", q.scalar_type());
  TORCH_CHECK(terms.bias.size(3) <= 1 || terms.bias.stride(3) == 1, "strided keys of a bias");
}

}  // namespace ringserve
