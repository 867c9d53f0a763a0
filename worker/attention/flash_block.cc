#include "worker/attention/flash_block.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

#include <ATen/Parallel.h>

#include "worker/attention/row_terms.h"
#include "worker/attention/score_rows.h"

#ifndef INTRA_OP_PARALLEL
#error "at::parallel_for would take one thread: compile with OpenMP"
#endif

namespace ringserve {
namespace {

constexpr float kNothing = -std::numeric_limits<float>::infinity();
// Few shapes of products. A row is one query of one head.
constexpr int64_t kRowsAtOnce = 64, kRowsRounded = 16;
constexpr int64_t kKeysAtOnce = 512;
constexpr int64_t kColumnsRounded = 16;
constexpr int64_t kPanelsPerThread = 4;
// Per thread, where heads are small: what is laid out is soon read again, from a processor's own
// cache.
constexpr int64_t kBytesLaidOut = 1 << 20;

int64_t CeilDiv(int64_t n, int64_t unit) { return (n + unit - 1) / unit; }
int64_t RoundUp(int64_t n, int64_t unit) { return CeilDiv(n, unit) * unit; }

// Few rows read the keys as they lie, in fp32 products.
bool HasFewRows(const at::Tensor& q, const at::Tensor& k) {
  return q.size(1) / k.size(1) * q.size(2) <= kFewRows;
}

// Number: what comes in. Factor: what is multiplied, bf16 in pairs or fp32.
template <typename Number, typename Factor>
class FlashBlock {
 public:
  FlashBlock(const Partial& into, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
             int64_t lo, int64_t hi, float scale, const ScoreTerms& terms)
      : into_(into),
        q_(q),
        k_(k),
        v_(v),
        lo_(lo),
        hi_(hi),
        scale_(scale),
        terms_(terms, q, k),
        batch_(q.size(0)),
        q_heads_(q.size(1)),
        kv_heads_(k.size(1)),
        queries_(q.size(2)),
        keys_(k.size(2)),
        dim_(q.size(3)),
        value_dim_(v.size(3)),
        group_(q_heads_ / kv_heads_),
        few_(HasFewRows(q, k)),
        depth_(std::is_same_v<Factor, float> ? dim_ : RoundUp(dim_, 2)),
        width_(RoundUp(value_dim_, kColumnsRounded)),
        queries_at_once_(std::min(queries_, kRowsAtOnce)),
        heads_at_once_(HeadsAtOnce()),
        most_rows_(std::min(RoundUp(heads_at_once_ * queries_at_once_, kRowsRounded), kRowsAtOnce)),
        most_keys_(few_ ? 0 : RoundUp(std::min(keys_, kKeysLaidOut), kPanelColumns)),
        most_kv_heads_(MostKvHeads()),
        laid_out_(at::empty({most_kv_heads_ * HeadBytes()}, at::kByte)),
        scratch_(at::empty({at::get_num_threads(), ScratchBytes()}, at::kByte)) {
    TORCH_CHECK(!few_ || (std::is_same_v<Factor, float>), "few rows are multiplied in fp32");
  }

  void Run() {
    const int64_t kv_heads = batch_ * kv_heads_;
    for (int64_t head = 0; head < kv_heads; head += most_kv_heads_) {
      for (int64_t key = 0; key < keys_; key += kKeysLaidOut) {
        const Slice slice = {head, std::min(kv_heads, head + most_kv_heads_), key,
                             std::min(keys_, key + kKeysLaidOut)};
        if (!few_) LayOut(slice);
        Attend(slice);
      }
    }
  }

 private:
  // Key heads, counted over all batch rows, and keys.
  struct Slice {
    int64_t first_head, last_head, k_begin, k_end;
  };

  // Some query heads of one key head, and some queries of each: what is multiplied at once.
  struct Block {
    int64_t head_of_slice, batch_row, kv_head, first_head, heads, q_begin, queries;

    int64_t rows() const { return heads * queries; }
    int64_t Head(int64_t row) const { return first_head + row / queries; }
    int64_t Query(int64_t row) const { return q_begin + row % queries; }
  };

  // Heads share a block where they have few queries, unless threads would have nothing to do.
  int64_t HeadsAtOnce() const {
    const int64_t blocks = batch_ * kv_heads_ * CeilDiv(queries_, queries_at_once_);
    int64_t heads = std::min(group_, kRowsAtOnce / queries_at_once_);
    while (heads > 1 && blocks * CeilDiv(group_, heads) < at::get_num_threads()) --heads;
    return heads;
  }

  int64_t MostKvHeads() const {
    const int64_t all = batch_ * kv_heads_;
    if (few_) return all;
    return std::min(all, at::get_num_threads() * std::max<int64_t>(1, kBytesLaidOut / HeadBytes()));
  }

  // A thread's: queries [rows, depth], scores [rows, 512], weights likewise (fp32 weights take the
  // scores' place), sums [rows, width].
  int64_t ScratchBytes() const {
    const int64_t weights = std::is_same_v<Factor, float> ? 0 : kKeysAtOnce;
    return most_rows_ *
           RoundUp((kKeysAtOnce + width_) * 4 + (depth_ + weights) * sizeof(Factor), 64);
  }

  int64_t HeadBytes() const { return most_keys_ * (depth_ + width_) * sizeof(Factor); }
  Factor* LaidOutKeys(int64_t head_of_slice) {
    return static_cast<Factor*>(laid_out_.mutable_data_ptr()) +
           head_of_slice * most_keys_ * (depth_ + width_);
  }
  // In panels of columns, each as long as the keys.
  Factor* LaidOutValues(int64_t head_of_slice) {
    return LaidOutKeys(head_of_slice) + most_keys_ * depth_;
  }

  void LayOut(const Slice& slice) {
    const int64_t panels = CeilDiv(slice.k_end - slice.k_begin, kPanelColumns);
    const int64_t heads = slice.last_head - slice.first_head;
    at::parallel_for(0, heads * panels, kPanelsPerThread, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i)
        LayOutPanel(slice, i / panels, i % panels * kPanelColumns);
    });
  }

  void LayOutPanel(const Slice& slice, int64_t head_of_slice, int64_t at) {
    const int64_t b = (slice.first_head + head_of_slice) / kv_heads_;
    const int64_t head = (slice.first_head + head_of_slice) % kv_heads_;
    const int64_t key = slice.k_begin + at;
    const int64_t rows = std::min(kPanelColumns, slice.k_end - key);
    LayOutKeys(LaidOutKeys(head_of_slice) + at * depth_, k_.At(b, head, key), k_.row, rows, dim_);
    for (int64_t c = 0; c < width_; c += kPanelColumns) {
      const int64_t width = std::min(kPanelColumns, width_ - c);
      LayOutValues(LaidOutValues(head_of_slice) + c * most_keys_ + at * width,
                   v_.At(b, head, key) + c, v_.row, rows, std::min(kPanelColumns, value_dim_ - c),
                   width);
    }
  }

  void Attend(const Slice& slice) {
    const int64_t of_queries = CeilDiv(queries_, queries_at_once_);
    const int64_t of_heads = CeilDiv(group_, heads_at_once_);
    const int64_t blocks = (slice.last_head - slice.first_head) * of_heads * of_queries;
    at::parallel_for(0, blocks, 1, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        const int64_t head_of_slice = i / of_queries / of_heads;
        const int64_t kv_head = slice.first_head + head_of_slice;         // of all batch rows
        const int64_t head = i / of_queries % of_heads * heads_at_once_;  // of those that share it
        const int64_t q_begin = i % of_queries * queries_at_once_;
        AttendBlock(slice, {.head_of_slice = head_of_slice,
                            .batch_row = kv_head / kv_heads_,
                            .kv_head = kv_head % kv_heads_,
                            .first_head = kv_head % kv_heads_ * group_ + head,
                            .heads = std::min(heads_at_once_, group_ - head),
                            .q_begin = q_begin,
                            .queries = std::min(queries_at_once_, queries_ - q_begin)});
      }
      ReleaseRegisters(static_cast<const Factor*>(nullptr));
    });
  }

  struct Scratch {
    float *scores, *sums;
    Factor *queries, *weights;
    int64_t rows;  // a multiple of 16
    float most[kRowsAtOnce], total[kRowsAtOnce];
  };

  Scratch MakeScratch(int64_t rows) {
    Scratch s;
    char* const bytes =
        static_cast<char*>(scratch_.mutable_data_ptr()) + at::get_thread_num() * ScratchBytes();
    s.scores = reinterpret_cast<float*>(bytes);
    s.sums = s.scores + most_rows_ * kKeysAtOnce;
    s.queries = reinterpret_cast<Factor*>(s.sums + most_rows_ * width_);
    s.weights = std::is_same_v<Factor, float> ? reinterpret_cast<Factor*>(s.scores)
                                              : s.queries + most_rows_ * depth_;
    s.rows = RoundUp(rows, kRowsRounded);
    return s;
  }

  // Keys [begin, begin + seen) of the slice; `begin` is a multiple of 64.
  struct Keys {
    int64_t begin, seen;
    int64_t rounded() const { return RoundUp(seen, kPanelColumns); }
  };

  void AttendBlock(const Slice& slice, const Block& block) {
    const int64_t diagonal = block.q_begin - slice.k_begin;  // the first query's, among the keys
    const int64_t begin = std::max<int64_t>(0, diagonal + lo_) / kPanelColumns * kPanelColumns;
    const int64_t end = std::min(slice.k_end - slice.k_begin, diagonal + block.queries + hi_);
    if (begin >= end) return;
    Scratch s = MakeScratch(block.rows());
    Begin(s, block);
    for (int64_t at = begin; at < end; at += kKeysAtOnce) {
      const Keys keys = {at, std::min(kKeysAtOnce, end - at)};
      MultiplyKeys(s, slice, block, keys);
      for (int64_t row = 0; row < block.rows(); ++row) {
        const int64_t of_row = diagonal + row % block.queries - at;
        const int64_t first = std::clamp<int64_t>(of_row + lo_, 0, keys.seen);
        const int64_t last = std::clamp(of_row + hi_ + 1, first, keys.seen);
        if (terms_.any()) {
          terms_.AddTo(s.scores + row * kKeysAtOnce + first, block.batch_row, block.Head(row),
                       block.Query(row), slice.k_begin + at + first, last - first, scale_);
        }
        Weights(s, row, first, last, keys.rounded());
      }
      MultiplyValues(s, slice, block, keys);
    }
    End(s, block);
  }

  // What the accumulator holds is one more weight of e^0, relative to its lse.
  void Begin(Scratch& s, const Block& block) {
    for (int64_t row = 0; row < s.rows; ++row) {
      float* const sums = s.sums + row * width_;
      Factor* const query = s.queries + row * depth_;
      const bool given = row < block.rows();
      const int64_t numbers = given ? dim_ : 0;
      if (given) CopyQuery(query, QueryOf(block, row), dim_);
      std::fill(query + numbers, query + depth_, Factor{});
      s.most[row] = given ? *LseOf(block, row) : kNothing;
      s.total[row] = s.most[row] == kNothing ? 0 : into_.open ? *TotalOf(block, row) : 1;
      const int64_t held = s.most[row] == kNothing ? 0 : value_dim_;
      if (held > 0) std::copy_n(OutOf(block, row), held, sums);
      std::fill(sums + held, sums + width_, 0.f);
    }
  }

  static void CopyQuery(float* to, const Number* from, int64_t n) { CopyRow(to, from, n); }
  static void CopyQuery(BFloat16Bits* to, const BFloat16Bits* from, int64_t n) {
    std::copy_n(from, n, to);
  }

  void MultiplyKeys(Scratch& s, const Slice& slice, const Block& block, const Keys& keys) {
    if constexpr (std::is_same_v<Factor, float>) {
      if (few_) {
        const Number* const given =
            k_.At(block.batch_row, block.kv_head, slice.k_begin + keys.begin);
        for (int64_t row = 0; row < block.rows(); ++row) {
          MultiplyRows(s.scores + row * kKeysAtOnce, s.queries + row * depth_, given, k_.row,
                       keys.seen, dim_);
        }
        return;
      }
    }
    const Factor* const laid_out = LaidOutKeys(block.head_of_slice) + keys.begin * depth_;
    for (int64_t i = 0; i < keys.rounded(); i += kPanelColumns) {
      Multiply(s.rows, kPanelColumns, depth_, s.queries, depth_, laid_out + i * depth_,
               s.scores + i, kKeysAtOnce, /*add=*/false);
    }
  }

  void MultiplyValues(Scratch& s, const Slice& slice, const Block& block, const Keys& keys) {
    if constexpr (std::is_same_v<Factor, float>) {
      if (few_) {
        const Number* const given =
            v_.At(block.batch_row, block.kv_head, slice.k_begin + keys.begin);
        for (int64_t row = 0; row < block.rows(); ++row) {
          AddRows(s.sums + row * width_, s.weights + row * kKeysAtOnce, given, v_.row, keys.seen,
                  value_dim_);
        }
        return;
      }
    }
    const Factor* const laid_out = LaidOutValues(block.head_of_slice);
    for (int64_t c = 0; c < width_; c += kPanelColumns) {
      const int64_t width = std::min(kPanelColumns, width_ - c);
      Multiply(s.rows, width, keys.rounded(), s.weights, kKeysAtOnce,
               laid_out + c * most_keys_ + keys.begin * width, s.sums + c, width_, /*add=*/true);
    }
  }

  // Scores [begin, end) of the row become weights, all others 0, relative to the largest so far.
  void Weights(Scratch& s, int64_t row, int64_t begin, int64_t end, int64_t n) {
    float* const scores = s.scores + row * kKeysAtOnce;
    Factor* const weights = s.weights + row * kKeysAtOnce;
    const float scale = terms_.any() ? 1 : scale_;
    const float before = s.most[row];
    const float largest = Largest(scores + begin, end - begin) * scale;
    const float most = largest > before ? largest : before;
    if (most == kNothing) {
      // Nothing but NaN is not nothing.
      for (int64_t i = begin; i < end; ++i) {
        if (std::isnan(scores[i])) s.most[row] = s.total[row] = scores[i];
      }
      std::fill_n(weights, n, Factor{});
      return;
    }
    const float sum = WeighInto(weights + begin, scores + begin, end - begin, scale, most);
    std::fill_n(weights, begin, Factor{});
    std::fill_n(weights + end, n - end, Factor{});
    if (most != before) {
      const float shrunk = std::exp(before - most);
      s.total[row] *= shrunk;
      ScaleRow(s.sums + row * width_, s.sums + row * width_, width_, shrunk);
      s.most[row] = most;
    }
    s.total[row] += sum;
  }

  static float WeighInto(float*, float* scores, int64_t n, float scale, float most) {
    return Weigh(scores, n, scale, most);
  }
  static float WeighInto(BFloat16Bits* weights, float* scores, int64_t n, float scale, float most) {
    return Weigh(weights, scores, n, scale, most);
  }

  void End(const Scratch& s, const Block& block) {
    for (int64_t row = 0; row < block.rows(); ++row) {
      if (s.most[row] == kNothing) continue;
      if (into_.open) {
        std::copy_n(s.sums + row * width_, value_dim_, OutOf(block, row));
        *LseOf(block, row) = s.most[row];
        *TotalOf(block, row) = s.total[row];
        continue;
      }
      ScaleRow(OutOf(block, row), s.sums + row * width_, value_dim_, 1 / s.total[row]);
      *LseOf(block, row) = s.most[row] + std::log(s.total[row]);
    }
  }

  const Number* QueryOf(const Block& block, int64_t row) const {
    return q_.At(block.batch_row, block.Head(row), block.Query(row));
  }
  float* OutOf(const Block& block, int64_t row) const {
    return const_cast<float*>(into_.out.At(block.batch_row, block.Head(row), block.Query(row)));
  }
  float* LseOf(const Block& block, int64_t row) const {
    return const_cast<float*>(into_.lse.At(block.batch_row, block.Head(row), block.Query(row)));
  }
  float* TotalOf(const Block& block, int64_t row) const {
    return const_cast<float*>(into_.total.At(block.batch_row, block.Head(row), block.Query(row)));
  }

  struct Accumulator {
    bool open;  // see Partial
    Rows<float> out, lse, total;
    explicit Accumulator(const Partial& into)
        : open(into.total.defined()),
          out(into.out),
          lse(into.lse),
          total(open ? into.total : into.lse) {}
  };

  const Accumulator into_;
  const Rows<Number> q_, k_, v_;
  const int64_t lo_, hi_;
  const float scale_;
  const RowTerms<Number> terms_;
  const int64_t batch_, q_heads_, kv_heads_, queries_, keys_, dim_, value_dim_;
  const int64_t group_;          // query heads of a key head
  const bool few_;               // rows: nothing is laid out
  const int64_t depth_, width_;  // dim and value_dim as they are laid out
  const int64_t queries_at_once_, heads_at_once_, most_rows_;  // of a block
  const int64_t most_keys_, most_kv_heads_;                    // that are laid out
  const at::Tensor laid_out_, scratch_;
};

template <typename Number>
void AccumulateWide(const Partial& into, const at::Tensor& q, const at::Tensor& k,
                    const at::Tensor& v, int64_t lo, int64_t hi, float scale,
                    const ScoreTerms& terms) {
  FlashBlock<Number, float>(into, q, k, v, lo, hi, scale, terms).Run();
}

}  // namespace

void AccumulateFlash(const Partial& into, const at::Tensor& q, const at::Tensor& k,
                     const at::Tensor& v, int64_t lo, int64_t hi, float scale, Products products,
                     const ScoreTerms& terms) {
  const at::ScalarType type = q.scalar_type();
  TORCH_CHECK(k.scalar_type() == type && v.scalar_type() == type, "q, k and v of different types");
  TORCH_CHECK(into.out.scalar_type() == at::kFloat && into.lse.scalar_type() == at::kFloat,
              "accumulates in fp32 alone");
  TORCH_CHECK(type == at::kBFloat16 || products == Products::kWide, "no pairs of ", type);
  if (!into.total.defined() && k.size(2) > kKeysLaidOut) {
    const Partial open = {into.out, into.lse, at::ones(into.lse.sizes(), at::kFloat)};
    AccumulateFlash(open, q, k, v, lo, hi, scale, products, terms);
    return Settle(open);
  }
  TORCH_CHECK(!into.total.defined() || into.total.scalar_type() == at::kFloat,
              "totals are fp32 alone");
  if (products == Products::kPairs && !HasFewRows(q, k)) {
    return FlashBlock<BFloat16Bits, BFloat16Bits>(into, q, k, v, lo, hi, scale, terms).Run();
  }
  switch (type) {
    case at::kFloat:
      return AccumulateWide<float>(into, q, k, v, lo, hi, scale, terms);
    case at::kBFloat16:
      return AccumulateWide<BFloat16Bits>(into, q, k, v, lo, hi, scale, terms);
    case at::kHalf:
      return AccumulateWide<HalfBits>(into, q, k, v, lo, hi, scale, terms);
    default:
      TORCH_CHECK(false, "no such arithmetic for ", type);
  }
}

}  // namespace ringserve
