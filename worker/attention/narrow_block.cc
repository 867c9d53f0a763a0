#include "worker/attention/narrow_block.h"

#include <algorithm>
#include <cmath>
#include <exception>
#include <limits>
#include <type_traits>

#include <ATen/Parallel.h>
#include <ATen/native/CPUBlas.h>

#include "worker/attention/score_rows.h"

#ifndef INTRA_OP_PARALLEL
#error "at::parallel_for would take one thread: compile with OpenMP"
#endif

namespace ringserve {
namespace {

namespace cpublas = at::native::cpublas;

constexpr float kNothing = -std::numeric_limits<float>::infinity();
// oneDNN makes machine code for every shape of a product and keeps it per thread: few shapes.
constexpr int64_t kQueriesAtOnce = 64, kQueriesRounded = 16;
constexpr int64_t kKeysAtOnce = 512;
constexpr int64_t kColumnsRounded = 16;
constexpr int64_t kPanelsPerThread = 4;
// Where there are more heads than threads, no more memory is taken than allocators keep: new pages
// cost more than the arithmetic of a few queries.
constexpr int64_t kBytesLaidOut = 16 << 20;

int64_t RoundUp(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

// c (+)= a b, a [m, k] and c [m, n] with rows lda and ldc apart, b as score_rows.h lays it out.
void Multiply(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b,
              float* c, int64_t ldc, bool add) {
  cpublas::brgemm(m, n, k, lda, n, ldc, add, a, b, c, /*is_vnni=*/false);
}
void Multiply(int64_t m, int64_t n, int64_t k, const BFloat16Bits* a, int64_t lda,
              const BFloat16Bits* b, float* c, int64_t ldc, bool add) {
  cpublas::brgemm(m, n, k, lda, n, ldc, add, reinterpret_cast<const at::BFloat16*>(a),
                  reinterpret_cast<const at::BFloat16*>(b), c, /*is_vnni=*/true);
}

// Leaves the thread's matrix registers to others.
void Release(const float*) {}
void Release(const BFloat16Bits*) { cpublas::brgemm_release(); }

template <typename Number>
struct Rows {
  const Number* data;
  int64_t batch, head, row;  // strides

  explicit Rows(const at::Tensor& t)
      : data(static_cast<const Number*>(t.const_data_ptr())),
        batch(t.stride(0)),
        head(t.stride(1)),
        row(t.stride(2)) {}
  const Number* At(int64_t b, int64_t h, int64_t i) const {
    return data + b * batch + h * head + i * row;
  }
};

// Number: what comes in. Factor: what is multiplied, bf16 in pairs or fp32.
template <typename Number, typename Factor>
class NarrowBlock {
 public:
  NarrowBlock(const Partial& into, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
              int64_t lo, int64_t hi, float scale)
      : into_(into),
        q_(q),
        k_(k),
        v_(v),
        lo_(lo),
        hi_(hi),
        scale_(scale),
        batch_(q.size(0)),
        q_heads_(q.size(1)),
        kv_heads_(k.size(1)),
        queries_(q.size(2)),
        keys_(k.size(2)),
        dim_(q.size(3)),
        value_dim_(v.size(3)),
        depth_(std::is_same_v<Factor, float> ? dim_ : RoundUp(dim_, 2)),
        width_(RoundUp(value_dim_, kColumnsRounded)),
        most_keys_(RoundUp(std::min(keys_, kKeysLaidOut), kPanelColumns)),
        most_heads_(std::min(batch_ * kv_heads_, std::max<int64_t>(at::get_num_threads(),
                                                                   kBytesLaidOut / HeadBytes()))),
        most_rows_(std::min(RoundUp(queries_, kQueriesRounded), kQueriesAtOnce)),
        laid_out_(at::empty({most_heads_ * HeadBytes()}, at::kByte)),
        scratch_(at::empty({at::get_num_threads(), ScratchBytes()}, at::kByte)) {}

  void Run() {
    const int64_t kv_heads = batch_ * kv_heads_;
    for (int64_t head = 0; head < kv_heads; head += most_heads_) {
      for (int64_t key = 0; key < keys_; key += kKeysLaidOut) {
        const Slice slice = {head, std::min(kv_heads, head + most_heads_), key,
                             std::min(keys_, key + kKeysLaidOut)};
        LayOut(slice);
        Attend(slice);
      }
    }
  }

 private:
  // Key heads, counted over all batch rows, and keys.
  struct Slice {
    int64_t first_head, last_head, k_begin, k_end;
  };

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
    const int64_t panels = (slice.k_end - slice.k_begin + kPanelColumns - 1) / kPanelColumns;
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
    const int64_t group = q_heads_ / kv_heads_;
    const int64_t blocks = (queries_ + kQueriesAtOnce - 1) / kQueriesAtOnce;
    const int64_t units = (slice.last_head - slice.first_head) * group * blocks;
    at::parallel_for(0, units, 1, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        const int64_t head = slice.first_head * group + i / blocks;  // of all batch rows
        AttendBlock(slice, head / q_heads_, head % q_heads_, i / blocks / group,
                    i % blocks * kQueriesAtOnce);
      }
      Release(static_cast<const Factor*>(nullptr));
    });
  }

  struct Scratch {
    float *scores, *sums;
    Factor *queries, *weights;
    int64_t rows;  // a multiple of 16
    float most[kQueriesAtOnce], total[kQueriesAtOnce];
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
    s.rows = RoundUp(rows, kQueriesRounded);
    return s;
  }

  // The queries of a block against the keys that are laid out.
  void AttendBlock(const Slice& slice, int64_t b, int64_t head, int64_t head_of_slice,
                   int64_t q_begin) {
    const int64_t rows = std::min(kQueriesAtOnce, queries_ - q_begin);
    const int64_t diagonal = q_begin - slice.k_begin;  // the first query's, among the slice's keys
    const int64_t seen_begin = std::max<int64_t>(0, diagonal + lo_) / kPanelColumns * kPanelColumns;
    const int64_t seen_end = std::min(slice.k_end - slice.k_begin, diagonal + rows + hi_);
    if (seen_begin >= seen_end) return;
    Scratch s = MakeScratch(rows);
    Begin(s, b, head, q_begin, rows);
    for (int64_t at = seen_begin; at < seen_end; at += kKeysAtOnce) {
      const int64_t seen = std::min(kKeysAtOnce, seen_end - at);
      const int64_t n = RoundUp(seen, kPanelColumns);
      for (int64_t i = 0; i < n; i += kPanelColumns) {
        Multiply(s.rows, kPanelColumns, depth_, s.queries, depth_,
                 LaidOutKeys(head_of_slice) + (at + i) * depth_, s.scores + i, kKeysAtOnce,
                 /*add=*/false);
      }
      for (int64_t row = 0; row < rows; ++row) {
        Weights(s, row, diagonal + row + lo_ - at, std::min(seen, diagonal + row + hi_ + 1 - at),
                n);
      }
      for (int64_t c = 0; c < width_; c += kPanelColumns) {
        const int64_t width = std::min(kPanelColumns, width_ - c);
        Multiply(s.rows, width, n, s.weights, kKeysAtOnce,
                 LaidOutValues(head_of_slice) + c * most_keys_ + at * width, s.sums + c, width_,
                 /*add=*/true);
      }
    }
    End(s, b, head, q_begin, rows);
  }

  // What the accumulator holds is one more weight of e^0, relative to its lse.
  void Begin(Scratch& s, int64_t b, int64_t head, int64_t q_begin, int64_t rows) {
    for (int64_t row = 0; row < s.rows; ++row) {
      float* const sums = s.sums + row * width_;
      Factor* const query = s.queries + row * depth_;
      const int64_t given = row < rows ? dim_ : 0;
      CopyQuery(query, given == 0 ? nullptr : q_.At(b, head, q_begin + row), given);
      std::fill(query + given, query + depth_, Factor{});
      s.most[row] = row < rows ? *Lse(b, head, q_begin + row) : kNothing;
      s.total[row] = s.most[row] == kNothing ? 0 : 1;
      const int64_t held = s.most[row] == kNothing ? 0 : value_dim_;
      if (held > 0) std::copy_n(Out(b, head, q_begin + row), held, sums);
      std::fill(sums + held, sums + width_, 0.f);
    }
  }

  static void CopyQuery(float* to, const Number* from, int64_t n) { CopyRow(to, from, n); }
  static void CopyQuery(Number* to, const Number* from, int64_t n) { std::copy_n(from, n, to); }

  // Scores [begin, end) of the row become weights, all others 0, relative to the largest so far.
  void Weights(Scratch& s, int64_t row, int64_t begin, int64_t end, int64_t n) {
    float* const scores = s.scores + row * kKeysAtOnce;
    Factor* const weights = s.weights + row * kKeysAtOnce;
    begin = std::clamp<int64_t>(begin, 0, n);
    end = std::max(begin, end);
    const float before = s.most[row];
    const float largest = Largest(scores + begin, end - begin) * scale_;
    const float most = largest > before ? largest : before;
    if (most == kNothing) {
      // Nothing but NaN is not nothing.
      for (int64_t i = begin; i < end; ++i) {
        if (std::isnan(scores[i])) s.most[row] = s.total[row] = scores[i];
      }
      std::fill_n(weights, n, Factor{});
      return;
    }
    const float sum = WeighInto(weights + begin, scores + begin, end - begin, most);
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

  float WeighInto(float*, float* scores, int64_t n, float most) const {
    return Weigh(scores, n, scale_, most);
  }
  float WeighInto(BFloat16Bits* weights, float* scores, int64_t n, float most) const {
    return Weigh(weights, scores, n, scale_, most);
  }

  void End(const Scratch& s, int64_t b, int64_t head, int64_t q_begin, int64_t rows) {
    for (int64_t row = 0; row < rows; ++row) {
      if (s.most[row] == kNothing) continue;
      ScaleRow(Out(b, head, q_begin + row), s.sums + row * width_, value_dim_, 1 / s.total[row]);
      *Lse(b, head, q_begin + row) = s.most[row] + std::log(s.total[row]);
    }
  }

  float* Out(int64_t b, int64_t head, int64_t row) const {
    return const_cast<float*>(into_.out.At(b, head, row));
  }
  float* Lse(int64_t b, int64_t head, int64_t row) const {
    return const_cast<float*>(into_.lse.At(b, head, row));
  }

  struct Accumulator {
    Rows<float> out, lse;
    explicit Accumulator(const Partial& into) : out(into.out), lse(into.lse) {}
  };

  const Accumulator into_;
  const Rows<Number> q_, k_, v_;
  const int64_t lo_, hi_;
  const float scale_;
  const int64_t batch_, q_heads_, kv_heads_, queries_, keys_, dim_, value_dim_;
  const int64_t depth_, width_;                       // dim and value_dim as they are laid out
  const int64_t most_keys_, most_heads_, most_rows_;  // that are laid out; of a block
  const at::Tensor laid_out_, scratch_;
};

// One small product whose result is known: a processor or library that does otherwise than
// score_rows.h thinks is not asked again.
bool PairsWork() {
  if (!__builtin_cpu_supports("avx512bf16") && !cpublas::could_pack(at::kBFloat16)) return false;
  const at::Tensor a =
      at::arange(16 * 32, at::kFloat).remainder(7).view({16, 32}).to(at::kBFloat16);
  const at::Tensor b =
      at::arange(64 * 32, at::kFloat).remainder(5).view({64, 32}).to(at::kBFloat16);
  at::Tensor panel = at::empty({32 * 64}, at::kBFloat16), c = at::empty({16, 64}, at::kFloat);
  const auto bits = [](const at::Tensor& t) {
    return static_cast<BFloat16Bits*>(t.mutable_data_ptr());
  };
  LayOutKeys(bits(panel), bits(b), 32, 64, 32);
  try {
    Multiply(16, 64, 32, bits(a), 32, bits(panel), c.mutable_data_ptr<float>(), 64, false);
    Release(bits(a));
  } catch (const std::exception&) {
    return false;
  }
  return c.equal(at::matmul(a.to(at::kFloat), b.to(at::kFloat).t()));
}

}  // namespace

Products BestProducts(at::ScalarType type) {
  static const bool pairs_work = PairsWork();
  return type == at::kBFloat16 && pairs_work ? Products::kPairs : Products::kWide;
}

void AccumulateNarrow(const Partial& into, const at::Tensor& q, const at::Tensor& k,
                      const at::Tensor& v, int64_t lo, int64_t hi, float scale, Products products) {
  const at::ScalarType type = q.scalar_type();
  TORCH_CHECK(k.scalar_type() == type && v.scalar_type() == type, "q, k and v of different types");
  TORCH_CHECK(into.out.scalar_type() == at::kFloat && into.lse.scalar_type() == at::kFloat,
              "16-bit types are accumulated in fp32");
  if (type == at::kHalf) {
    TORCH_CHECK(products == Products::kWide, "f16 has no products of pairs");
    return NarrowBlock<HalfBits, float>(into, q, k, v, lo, hi, scale).Run();
  }
  TORCH_CHECK(type == at::kBFloat16, "not a 16-bit type: ", type);
  if (products == Products::kWide) {
    return NarrowBlock<BFloat16Bits, float>(into, q, k, v, lo, hi, scale).Run();
  }
  NarrowBlock<BFloat16Bits, BFloat16Bits>(into, q, k, v, lo, hi, scale).Run();
}

}  // namespace ringserve
