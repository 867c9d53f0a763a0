#include "worker/attention/cpu_block.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <utility>

#include "worker/attention/backward_block.h"
#include "worker/attention/flash_block.h"
#include "worker/attention/tile_pieces.h"

namespace ringserve {
namespace {

constexpr double kHidden = -std::numeric_limits<double>::infinity();

// The keys that row `q` of the tile sees, both counted from its corner.
std::pair<int64_t, int64_t> KeysSeen(const Tile& tile, int64_t q) {
  return {tile.lo ? std::max<int64_t>(0, q + *tile.lo) : 0,
          tile.hi ? std::min(Keys(tile), q + *tile.hi + 1) : Keys(tile)};
}

void AddFlash(const Partial& into, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
              const Tile& tile, double scale, const ScoreTerms& terms) {
  const Tile box = BoundingBox(tile);
  if (Queries(box) == 0) return;
  AccumulateFlash(into.Queries(box.q_begin, box.q_end), q.narrow(2, box.q_begin, Queries(box)),
                  k.narrow(2, box.k_begin, Keys(box)), v.narrow(2, box.k_begin, Keys(box)),
                  box.lo.value_or(-Queries(box)), box.hi.value_or(Keys(box)),
                  static_cast<float>(scale), BestProducts(q.scalar_type()), TermsOf(box, terms));
}

at::Tensor PadLastDim(const at::Tensor& tensor, int64_t dim) {
  const int64_t missing = dim - tensor.size(-1);
  return missing == 0 ? tensor : at::constant_pad_nd(tensor, {0, missing}, 0);
}

// What is added to the scaled score of row q and key j, counted from the tile's corner. Terms of
// one batch row and one head.
class PairTerms {
 public:
  PairTerms(const Tile& tile, const ScoreTerms& all_terms) : terms_(TermsOf(tile, all_terms)) {
    if (terms_.alibi_slopes.defined()) slope_ = *terms_.alibi_slopes.const_data_ptr<float>();
    if (!terms_.bias.defined()) return;
    row_stride_ = terms_.bias.stride(2);
    const void* const bias = terms_.bias.const_data_ptr();
    const bool adds = terms_.bias.scalar_type() == at::kDouble;
    bias_ = adds ? static_cast<const double*>(bias) : nullptr;
    visible_ = adds ? nullptr : static_cast<const uint8_t*>(bias);
  }

  double At(int64_t q, int64_t j) const {
    if (visible_ && visible_[q * row_stride_ + j] == 0) return kHidden;
    const double distance = std::abs(static_cast<double>(terms_.distance + q - j));
    return (bias_ ? bias_[q * row_stride_ + j] : 0) - slope_ * distance;
  }

 private:
  const ScoreTerms terms_;
  const double* bias_ = nullptr;
  const uint8_t* visible_ = nullptr;
  int64_t row_stride_ = 0;
  double slope_ = 0;
};

// -inf where a pair is not visible, else what is added to its score. Every row of `tile` sees a
// key.
at::Tensor DenseMask(const Tile& tile, const ScoreTerms& terms) {
  const int64_t keys = Keys(tile);
  const PairTerms of_pair(tile, terms);
  at::Tensor mask = at::full({Queries(tile), keys}, kHidden, at::kDouble);
  double* row = mask.mutable_data_ptr<double>();
  for (int64_t q = 0; q < Queries(tile); ++q, row += keys) {
    const auto [begin, end] = KeysSeen(tile, q);
    for (int64_t j = begin; j < end; ++j) row[j] = of_pair.At(q, j);
  }
  return mask;
}

// LibTorch's, for fp64: it returns partials in the type of q.
struct Kernel {
  const Partial& into;
  const at::Tensor &q, &k, &v;
  double scale;
  const ScoreTerms& terms;

  void Run(const Tile& tile, bool causal, const std::optional<at::Tensor>& mask) const {
    // The kernel takes one head dim for all. Zeros add nothing to a score; columns of zero values
    // are cut off.
    const int64_t dim = std::max(q.size(3), v.size(3));
    const auto [out, lse] = at::_scaled_dot_product_flash_attention_for_cpu(
        PadLastDim(q.narrow(2, tile.q_begin, Queries(tile)), dim),
        PadLastDim(k.narrow(2, tile.k_begin, Keys(tile)), dim),
        PadLastDim(v.narrow(2, tile.k_begin, Keys(tile)), dim), /*dropout_p=*/0.0, causal, mask,
        scale);
    HideRowsWithoutWeight(tile, mask, out, lse);
    Merge(into.Queries(tile.q_begin, tile.q_end), {out.narrow(3, 0, v.size(3)), lse});
  }

  // To the kernel a row whose scores are all -inf (an infinite key, one that overflows, a bias) is
  // a row that is hidden altogether: it says out 0 and lse 0, which would weigh as much as one
  // score of 0.
  void HideRowsWithoutWeight(const Tile& tile, const std::optional<at::Tensor>& mask,
                             const at::Tensor& out, const at::Tensor& lse) const {
    const at::Tensor doubtful = lse.eq(0);
    if (!doubtful.any().item<bool>()) return;
    const at::Tensor rows = doubtful.nonzero();
    const auto at = rows.accessor<int64_t, 2>();
    for (int64_t i = 0; i < rows.size(0); ++i) {
      const int64_t b = at[i][0], h = at[i][1], row = at[i][2];
      if (out[b][h][row].any().item<bool>() || HasWeight(tile, mask, b, h, row)) continue;
      lse[b][h][row].fill_(kHidden);
    }
  }

  bool HasWeight(const Tile& tile, const std::optional<at::Tensor>& mask, int64_t b, int64_t h,
                 int64_t row) const {
    constexpr int64_t kKeysAtOnce = 1024;
    const at::Tensor query = q[b][h][tile.q_begin + row];
    const at::Tensor keys = k[b][h / (q.size(1) / k.size(1))];
    const auto [begin, end] = KeysSeen(tile, row);
    for (int64_t key = begin; key < end; key += kKeysAtOnce) {
      const int64_t n = std::min(kKeysAtOnce, end - key);
      const at::Tensor scores = at::mv(keys.narrow(0, tile.k_begin + key, n), query).mul_(scale);
      if (mask) scores.add_((*mask)[row].narrow(0, key, n));
      if (!scores.isneginf().all().item<bool>()) return true;
    }
    return false;
  }

  void Add(const Tile& tile) const {
    const PieceRules rules = {.all_masked = terms.any(),
                              .masked_queries = kMostMaskedQueries,
                              .masked_keys = kMostMaskedKeys};
    ForEachPiece(tile, rules, [&](const Tile& piece, PieceKind kind) {
      std::optional<at::Tensor> mask;
      if (kind == PieceKind::kMasked) mask = DenseMask(piece, terms);
      Run(piece, kind == PieceKind::kCausal, mask);
    });
  }
};

at::Tensor OneHead(const at::Tensor& tensor, int64_t b, int64_t head) {
  return tensor.narrow(0, b, 1).narrow(1, head, 1);
}

// Masks with terms are made for one head at a time, so that they stay small.
void AddWide(const Partial& into, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
             const Tile& tile, double scale, const ScoreTerms& terms) {
  if (!terms.any()) return Kernel{into, q, k, v, scale, terms}.Add(tile);
  const int64_t batch = q.size(0), heads = q.size(1), group = heads / k.size(1);
  ScoreTerms of_head;
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t h = 0; h < heads; ++h) {
      if (terms.alibi_slopes.defined()) of_head.alibi_slopes = terms.alibi_slopes.narrow(0, h, 1);
      if (terms.bias.defined()) {
        of_head.bias = OneHead(terms.bias.expand({batch, heads, -1, -1}), b, h);
      }
      Kernel{{OneHead(into.out, b, h), into.lse.narrow(0, b, 1).narrow(1, h, 1)},
             OneHead(q, b, h),
             OneHead(k, b, h / group),
             OneHead(v, b, h / group),
             scale,
             of_head}
          .Add(tile);
    }
  }
}

// By flash_block.h; fp64 by LibTorch's CPU flash kernel and a merge. Gradients by backward_block.h.
class BlockOfProcessor : public Block {
 public:
  bool KeepsOpen(at::ScalarType type) const override { return type != at::kDouble; }

  void Accumulate(const Partial& into, const at::Tensor& q, const at::Tensor& k,
                  const at::Tensor& v, const Tile& tile, double scale,
                  const ScoreTerms& terms) const override {
    TORCH_CHECK(scale > 0, "scale is ", scale);
    CheckTerms(terms, q);
    q.scalar_type() == at::kDouble ? AddWide(into, q, k, v, tile, scale, terms)
                                   : AddFlash(into, q, k, v, tile, scale, terms);
  }

  void AccumulateGradients(const Gradients& into, const AnsweredQueries& queries,
                           const at::Tensor& k, const at::Tensor& v, const Tile& tile, double scale,
                           const ScoreTerms& terms) const override {
    ringserve::AccumulateGradients(into, queries, k, v, tile, scale, terms);
  }
};

}  // namespace

const Block& CpuBlock() {
  static const BlockOfProcessor block;
  return block;
}

}  // namespace ringserve
