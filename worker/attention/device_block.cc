#include "worker/attention/device_block.h"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <optional>
#include <utility>
#include <vector>

#include "worker/attention/backward_block.h"
#include "worker/attention/dense_products.h"
#include "worker/attention/pair_mask.h"
#include "worker/attention/tile_pieces.h"

namespace ringserve {
namespace {

constexpr int64_t kRowUnit = 8;  // numbers
constexpr int64_t kRowBytes = 16;
constexpr double kNothing = -std::numeric_limits<double>::infinity();
constexpr double kNotANumber = std::numeric_limits<double>::quiet_NaN();
// Scores of such size stay finite whatever a kernel multiplies them by.
constexpr double kLargestScore = 1e37;

// One call of Accumulate, or what it does for some batch rows and heads.
struct Work {
  Partial into;
  at::Tensor q, k, v;
  ScoreTerms terms;  // of all queries and keys of the request

  int64_t group() const { return q.size(1) / k.size(1); }
};

at::Tensor Narrow(const at::Tensor& t, int64_t dim, int64_t begin, int64_t n) {
  return !t.defined() || t.size(dim) == 1 ? t : t.narrow(dim, begin, n);
}

ScoreTerms BatchRows(ScoreTerms terms, int64_t begin, int64_t n) {
  terms.bias = Narrow(terms.bias, 0, begin, n);
  return terms;
}

ScoreTerms Heads(ScoreTerms terms, int64_t begin, int64_t n) {
  terms.bias = Narrow(terms.bias, 1, begin, n);
  terms.alibi_slopes = Narrow(terms.alibi_slopes, 0, begin, n);
  return terms;
}

Work BatchRows(const Work& w, int64_t begin, int64_t n) {
  const auto rows = [&](const at::Tensor& t) { return t.narrow(0, begin, n); };
  return {{rows(w.into.out), rows(w.into.lse)},
          rows(w.q),
          rows(w.k),
          rows(w.v),
          BatchRows(w.terms, begin, n)};
}

Work KeyHeads(const Work& w, int64_t begin, int64_t n) {
  const int64_t group = w.group();
  const auto heads = [&](const at::Tensor& t) { return t.narrow(1, begin * group, n * group); };
  return {{heads(w.into.out), heads(w.into.lse)},
          heads(w.q),
          w.k.narrow(1, begin, n),
          w.v.narrow(1, begin, n),
          Heads(w.terms, begin * group, n * group)};
}

// The rows of a piece.
Work RowsOf(const Work& w, const Tile& piece) {
  return {w.into.Queries(piece.q_begin, piece.q_end), w.q.narrow(2, piece.q_begin, Queries(piece)),
          w.k.narrow(2, piece.k_begin, Keys(piece)), w.v.narrow(2, piece.k_begin, Keys(piece)),
          TermsOf(piece, w.terms)};
}

// Calls `run` with so many batch rows and key heads at once as take at most `most` numbers, of
// which each key head takes `of_head`.
template <typename Any, typename Run>
void ForEachShare(const Any& all, int64_t batch, int64_t kv_heads, int64_t of_head, int64_t most,
                  const Run& run) {
  constexpr int64_t kMostAtOnce = 32'768;  // of a kernel's grid
  const int64_t heads = std::clamp<int64_t>(most / std::max<int64_t>(1, of_head), 1, kMostAtOnce);
  const int64_t batch_rows = std::max<int64_t>(1, heads / kv_heads);
  for (int64_t b = 0; b < batch; b += batch_rows) {
    const Any rows = BatchRows(all, b, std::min(batch_rows, batch - b));
    if (heads >= kv_heads) {
      run(rows);
      continue;
    }
    for (int64_t h = 0; h < kv_heads; h += heads) {
      run(KeyHeads(rows, h, std::min(heads, kv_heads - h)));
    }
  }
}

int64_t RoundedUp(int64_t n) { return (n + kRowUnit - 1) / kRowUnit * kRowUnit; }

// Rows that begin where a kernel may read them, with `dim` numbers, zeros behind their own: those
// add nothing to a score, and columns of such values are cut off.
bool Fits(const at::Tensor& t, int64_t dim) {
  const int64_t size = static_cast<int64_t>(t.element_size());
  bool fits = t.size(3) == dim && t.stride(3) == 1 && t.stride(2) * size % kRowBytes == 0 &&
              reinterpret_cast<uintptr_t>(t.const_data_ptr()) % kRowBytes == 0;
  for (const int64_t i : {0, 1}) {
    fits = fits && (t.size(i) == 1 || t.stride(i) * size % kRowBytes == 0);
  }
  return fits;
}

at::Tensor Fitted(const at::Tensor& t, int64_t dim) {
  if (Fits(t, dim)) return t;
  return t.size(3) == dim ? t.clone(at::MemoryFormat::Contiguous)
                          : at::constant_pad_nd(t, {0, dim - t.size(3)}, 0);
}

at::Tensor LargestNumber(const at::Tensor& t) {
  const auto [least, most] = at::aminmax(t);
  return at::maximum(least.neg(), most).to(at::kDouble);
}

// Whether every score of the tile, but for a bias, is a number of moderate size, before it is
// scaled and after. Waits.
bool ScoresAreModerate(const Work& w, const Tile& tile, double scale) {
  at::Tensor most = LargestNumber(w.q.narrow(2, tile.q_begin, Queries(tile))) *
                    LargestNumber(w.k.narrow(2, tile.k_begin, Keys(tile))) *
                    (std::max(1.0, scale) * static_cast<double>(w.q.size(3)));
  if (w.terms.alibi_slopes.defined()) {
    const int64_t farthest = std::abs(tile.distance) + Queries(tile) + Keys(tile);
    most = most + LargestNumber(w.terms.alibi_slopes) * static_cast<double>(farthest);
  }
  return most.item<double>() < kLargestScore;
}

// A row whose largest score is hidden saw nothing; else that is to be of moderate size, too. Waits.
bool BiasIsModerate(const at::Tensor& largest) {
  return largest.abs().lt(kLargestScore).logical_or(largest.isneginf()).all().item<bool>();
}

// Adds one tile. What follows are its pieces.
class DeviceTile {
 public:
  DeviceTile(const AttentionKernels& kernels, int capability, const PieceLimits& limits,
             const Work& work, const Tile& tile, double scale)
      : kernels_(kernels),
        capability_(capability),
        limits_(limits),
        work_(work),
        tile_(tile),
        scale_(scale),
        type_(work.q.scalar_type()),
        head_dim_(work.q.size(3)),
        value_dim_(work.v.size(3)) {
    // Distances of ALiBi are not rounded to 16 bits.
    if (work.terms.alibi_slopes.defined()) type_ = WideType(type_);
  }

  void Add() {
    ForEachPiece(tile_, Rules(), [&](const Tile& piece, PieceKind kind) { Add(piece, kind); });
  }

 private:
  PieceRules Rules() const {
    const int64_t dim = std::max(head_dim_, value_dim_);
    const int64_t group = work_.group();
    PieceRules rules = {.all_masked = work_.terms.any(), .causal_squares = true};
    rules.queries = std::max(limits_.queries, limits_.numbers / (work_.q.size(1) * dim));
    rules.masked_keys = limits_.masked_keys;
    rules.masked_queries = std::clamp<int64_t>(limits_.numbers / (group * limits_.masked_keys), 1,
                                               limits_.masked_queries);
    rules.whole_keys = limits_.whole_keys;
    // Copies are bounded, too.
    const bool copies = !Fits(work_.k, RoundedUp(dim)) || !Fits(work_.v, RoundedUp(dim));
    if (copies) rules.keys = std::max(limits_.masked_keys, limits_.numbers / dim);
    // The efficient kernel counts numbers from a piece's first row to its last in 32 bits.
    rules.keys = std::min(rules.keys, MostRows({work_.k, work_.v}));
    rules.queries = std::min(rules.queries, MostRows({work_.q}));
    return rules;
  }

  static int64_t MostRows(at::TensorList tensors) {
    int64_t row = 1;
    for (const at::Tensor& t : tensors) {
      row = std::max({row, t.stride(2), RoundedUp(t.size(3))});
    }
    return std::max<int64_t>(1, std::numeric_limits<int32_t>::max() / row);
  }

  void Add(const Tile& piece, PieceKind kind) {
    const bool masked = kind == PieceKind::kMasked;
    switch (KernelFor(type_, head_dim_, value_dim_, masked, capability_)) {
      case AttentionKernel::kFlash:
        return ForEachPart(piece, [&](const Work& part) {
          AddFlash(RowsOf(part, piece), kind == PieceKind::kCausal);
        });
      case AttentionKernel::kEfficient:
        if (!moderate_) moderate_ = ScoresAreModerate(work_, tile_, scale_);
        if (!*moderate_) return AddProducts(work_, piece);
        return ForEachPart(piece, [&](const Work& part) { AddEfficient(part, piece, kind); });
      case AttentionKernel::kProducts:
        return AddProducts(work_, piece);
    }
  }

  template <typename Run>
  void ForEachPart(const Tile& piece, const Run& run) const {
    const int64_t dim = RoundedUp(std::max(head_dim_, value_dim_));
    const int64_t of_queries = work_.group() * Queries(piece) * dim;
    const int64_t of_mask =
        work_.terms.any() ? work_.group() * Queries(piece) * RoundedUp(Keys(piece)) : 0;
    const bool copies = !Fits(work_.k, dim) || !Fits(work_.v, dim);
    const int64_t of_keys = copies ? Keys(piece) * dim : 0;
    ForEachShare(work_, work_.q.size(0), work_.k.size(1), std::max({of_queries, of_mask, of_keys}),
                 limits_.numbers, run);
  }

  void AddFlash(const Work& piece, bool causal) const {
    const int64_t dim = RoundedUp(std::max(head_dim_, value_dim_));
    const auto [out, lse] = kernels_.Flash(Fitted(piece.q, dim), Fitted(piece.k, dim),
                                           Fitted(piece.v, dim), causal, scale_);
    // NaN in a weight is in every column, whatever lse says of it.
    MergePart(
        piece.into, out,
        lse.masked_fill(lse.isposinf(), kNothing).masked_fill_(out.isnan().all(-1), kNotANumber));
  }

  void AddEfficient(const Work& part, const Tile& tile, PieceKind kind) const {
    const Work piece = RowsOf(part, tile);
    at::Tensor mask, saw_nothing;
    if (kind == PieceKind::kMasked) mask = PairMask(tile, piece.terms, type_, piece.q.device());
    if (piece.terms.bias.defined()) {
      const at::Tensor largest = mask.amax(-1);
      if (AddsBias(piece.terms) && !BiasIsModerate(largest)) return AddProducts(part, tile);
      saw_nothing = largest.isneginf();
    }
    for (int64_t b = 0; b < piece.q.size(0); ++b) {
      const auto [out, lse] =
          Efficient(BatchRows(piece, b, 1), Narrow(mask, 0, b, 1), kind == PieceKind::kCausal);
      const at::Tensor hidden = Narrow(saw_nothing, 0, b, 1);
      MergePart(BatchRows(piece, b, 1).into, out,
                hidden.defined() ? lse.masked_fill(hidden, kNothing) : lse);
    }
  }

  // Of one batch row. Heads that share keys are heads to the kernel, and key heads its batch rows:
  // keys need not be repeated, and its offsets from head to head, of 32 bits, stay small.
  std::pair<at::Tensor, at::Tensor> Efficient(const Work& piece, const at::Tensor& mask,
                                              bool causal) const {
    const int64_t kv_heads = piece.k.size(1), group = piece.group();
    const auto by_key_head = [&](const at::Tensor& t) {
      const at::Tensor heads = t.squeeze(0);
      return heads.size(0) == kv_heads * group ? heads.unflatten(0, {kv_heads, group})
                                               : heads.unsqueeze(0);
    };
    const auto fitted = [&](const at::Tensor& t) {
      const at::Tensor typed = t.to(type_);
      return Fitted(typed, RoundedUp(t.size(3)));
    };
    at::Tensor q = by_key_head(fitted(piece.q));
    if (q.stride(1) > std::numeric_limits<int32_t>::max()) {
      q = q.clone(at::MemoryFormat::Contiguous);
    }
    const std::vector<int64_t> shared = {kv_heads, group, piece.k.size(2), -1};
    at::Tensor bias;
    if (mask.defined()) {
      bias = by_key_head(mask).expand({kv_heads, group, q.size(2), piece.k.size(2)});
    }
    const auto [out, lse] = kernels_.Efficient(
        q, fitted(piece.k).squeeze(0).unsqueeze(1).expand(shared),
        fitted(piece.v).squeeze(0).unsqueeze(1).expand(shared), bias, causal, scale_);
    return {out.flatten(0, 1).unsqueeze(0), lse.narrow(2, 0, q.size(2)).flatten(0, 1).unsqueeze(0)};
  }

  void AddProducts(const Work& work, const Tile& tile) const {
    const PieceRules rules = {.all_masked = work.terms.any(),
                              .queries = limits_.masked_queries,
                              .keys = limits_.masked_keys,
                              .whole_keys = limits_.whole_keys};
    ForEachPiece(tile, rules, [&](const Tile& piece, PieceKind kind) {
      const int64_t of_head = work.group() * Queries(piece) * (Keys(piece) + value_dim_) +
                              Keys(piece) * (head_dim_ + value_dim_);
      ForEachShare(work, work.q.size(0), work.k.size(1), of_head, limits_.numbers,
                   [&](const Work& part) {
                     const Work rows = RowsOf(part, piece);
                     at::Tensor mask;
                     if (kind != PieceKind::kWhole) {
                       mask = PairMask(piece, rows.terms, WideType(type_), rows.q.device());
                     }
                     Merge(rows.into, AttendByProducts(rows.q, rows.k, rows.v, mask, scale_));
                   });
    });
  }

  void MergePart(const Partial& into, const at::Tensor& out, const at::Tensor& lse) const {
    Merge(into, {out.to(at::kFloat).narrow(3, 0, value_dim_), lse});
  }

  const AttentionKernels& kernels_;
  const int capability_;
  const PieceLimits& limits_;
  const Work& work_;
  const Tile& tile_;
  const double scale_;
  at::ScalarType type_;  // that the kernels are given
  const int64_t head_dim_, value_dim_;
  std::optional<bool> moderate_;  // once it is known
};

// One call of AccumulateGradients, or what it does for some batch rows and heads.
struct BackwardWork {
  Gradients into;
  AnsweredQueries queries;
  at::Tensor k, v;
  ScoreTerms terms;
};

BackwardWork Narrowed(const BackwardWork& w, int64_t dim, int64_t q_begin, int64_t q_n,
                      int64_t k_begin, int64_t k_n, ScoreTerms terms) {
  const auto of_queries = [&](const at::Tensor& t) { return t.narrow(dim, q_begin, q_n); };
  const auto of_keys = [&](const at::Tensor& t) { return t.narrow(dim, k_begin, k_n); };
  const AnsweredQueries& q = w.queries;
  return {{of_queries(w.into.d_q), of_keys(w.into.d_k), of_keys(w.into.d_v)},
          {of_queries(q.q), of_queries(q.d_out), of_queries(q.lse), of_queries(q.delta)},
          of_keys(w.k),
          of_keys(w.v),
          std::move(terms)};
}

BackwardWork BatchRows(const BackwardWork& w, int64_t begin, int64_t n) {
  return Narrowed(w, 0, begin, n, begin, n, BatchRows(w.terms, begin, n));
}

BackwardWork KeyHeads(const BackwardWork& w, int64_t begin, int64_t n) {
  const int64_t group = w.queries.q.size(1) / w.k.size(1);
  return Narrowed(w, 1, begin * group, n * group, begin, n,
                  Heads(w.terms, begin * group, n * group));
}

}  // namespace

AttentionKernel KernelFor(at::ScalarType type, int64_t head_dim, int64_t value_dim, bool masked,
                          int capability) {
  constexpr int64_t kMostFlashDim = 256;
  constexpr int kAmpere = 80;
  const bool half = type == at::kHalf, bfloat16 = type == at::kBFloat16;
  if ((half || bfloat16) && !masked && capability >= kAmpere &&
      std::max(head_dim, value_dim) <= kMostFlashDim) {
    return AttentionKernel::kFlash;
  }
  if (type == at::kFloat || half || (bfloat16 && capability >= kAmpere)) {
    return AttentionKernel::kEfficient;
  }
  return AttentionKernel::kProducts;
}

DeviceBlock::DeviceBlock(std::unique_ptr<const AttentionKernels> kernels, int capability,
                         const PieceLimits& limits)
    : kernels_(std::move(kernels)), capability_(capability), limits_(limits) {}

void DeviceBlock::Accumulate(const Partial& into, const at::Tensor& q, const at::Tensor& k,
                             const at::Tensor& v, const Tile& tile, double scale,
                             const ScoreTerms& terms) const {
  TORCH_CHECK(scale > 0, "scale is ", scale);
  CheckTerms(terms, q);
  const Tile box = BoundingBox(tile);
  if (Queries(box) == 0 || q.numel() == 0 || k.numel() == 0) return;
  const Work work = {into, q, k, v, terms};
  DeviceTile(*kernels_, capability_, limits_, work, box, scale).Add();
}

void DeviceBlock::AccumulateGradients(const Gradients& into, const AnsweredQueries& queries,
                                      const at::Tensor& k, const at::Tensor& v, const Tile& tile,
                                      double scale, const ScoreTerms& terms) const {
  CheckGradients(into, queries, k, v);
  CheckTerms(terms, queries.q);
  if (queries.q.numel() == 0 || k.numel() == 0) return;
  const int64_t group = queries.q.size(1) / k.size(1);
  const BackwardWork all = {into, queries, k, v, terms};
  const PieceRules rules = {.all_masked = terms.any(),
                            .queries = limits_.masked_queries,
                            .keys = limits_.masked_keys,
                            .whole_keys = limits_.whole_keys};
  ForEachPiece(tile, rules, [&](const Tile& piece, PieceKind kind) {
    const int64_t of_head = 2 * group * Queries(piece) * Keys(piece) +
                            2 * (group * Queries(piece) + Keys(piece)) * (k.size(3) + v.size(3));
    ForEachShare(
        all, k.size(0), k.size(1), of_head, limits_.numbers, [&](const BackwardWork& part) {
          const BackwardWork rows = Narrowed(part, 2, piece.q_begin, Queries(piece), piece.k_begin,
                                             Keys(piece), TermsOf(piece, part.terms));
          at::Tensor mask;
          if (kind != PieceKind::kWhole) {
            mask = PairMask(piece, rows.terms, WideType(k.scalar_type()), k.device());
          }
          AddGradientsByProducts(rows.into, rows.queries, rows.k, rows.v, mask, scale);
        });
  });
}

}  // namespace ringserve
