#include "worker/attention/backward_block.h"

#include <algorithm>
#include <limits>
#include <type_traits>

#include <ATen/Parallel.h>
#include <c10/core/InferenceMode.h>

#include "worker/attention/block.h"
#include "worker/attention/gradient_rows.h"
#include "worker/attention/partial.h"
#include "worker/attention/row_blend.h"
#include "worker/attention/row_terms.h"

#ifndef INTRA_OP_PARALLEL
#error "at::parallel_for would take one thread: compile with OpenMP"
#endif

namespace ringserve {
namespace {

constexpr int64_t kQueriesAtOnce = 128;
constexpr int64_t kMostKeysAtOnce = 512, kLeastKeysAtOnce = 64;
// Of keys and values that are multiplied at once: what fits a processor's own cache.
constexpr int64_t kNumbersAtOnce = 1 << 17;

int64_t CeilDiv(int64_t n, int64_t unit) { return (n + unit - 1) / unit; }

int64_t KeysAtOnce(int64_t keys, int64_t width) {
  const int64_t fit =
      kNumbersAtOnce / std::max<int64_t>(1, width) / kLeastKeysAtOnce * kLeastKeysAtOnce;
  return std::min(keys, std::clamp(fit, kLeastKeysAtOnce, kMostKeysAtOnce));
}

// So many share the queries of each key head, that no thread stays idle for long.
int64_t SharesOf(int64_t kv_heads, int64_t blocks) {
  const int64_t threads = at::get_num_threads();
  int64_t shares = 1;
  if (kv_heads < threads) {
    shares = CeilDiv(threads, kv_heads);
  } else if (kv_heads % threads != 0 && kv_heads < 2 * threads) {
    shares = 2;
  }
  return std::max<int64_t>(1, std::min(shares, blocks));
}

template <typename Wide>
at::Tensor Matrix(const Wide* data, int64_t rows, int64_t columns, int64_t stride) {
  return at::from_blob(const_cast<Wide*>(data), {rows, columns}, {std::max(stride, columns), 1},
                       c10::CppTypeToScalarType<Wide>::value);
}

// c = factor a b^T.
void MultiplyBy(const at::Tensor& c, const at::Tensor& a, const at::Tensor& b, double factor) {
  at::Tensor result = c;
  at::addmm_out(result, c, a, b.t(), /*beta=*/0, factor);
}

// Number: what comes in. Wide: what everything is computed in.
template <typename Number, typename Wide>
class BackwardBlock {
 public:
  BackwardBlock(const Gradients& into, const AnsweredQueries& queries, const at::Tensor& k,
                const at::Tensor& v, int64_t lo, int64_t hi, double scale, const ScoreTerms& terms)
      : into_(into),
        q_(queries.q),
        d_out_(queries.d_out),
        lse_(queries.lse),
        delta_(queries.delta),
        k_(k),
        v_(v),
        lo_(lo),
        hi_(hi),
        scale_(scale),
        terms_(terms, queries.q, k),
        kv_heads_(k.size(1)),
        all_kv_heads_(k.size(0) * k.size(1)),
        group_(queries.q.size(1) / k.size(1)),
        queries_(queries.q.size(2)),
        keys_(k.size(2)),
        dim_(k.size(3)),
        value_dim_(v.size(3)),
        blocks_(CeilDiv(queries_, kQueriesAtOnce)),
        shares_(SharesOf(all_kv_heads_, group_ * blocks_)),
        most_queries_(std::min(queries_, kQueriesAtOnce)),
        most_keys_(KeysAtOnce(keys_, dim_ + value_dim_)),
        scratch_(MakeWide(at::get_num_threads() * ScratchNumbers())),
        sums_(MakeWide(shares_ > 1 ? all_kv_heads_ * shares_ * SumNumbers() : 0)) {}

  void Run() {
    for (int64_t key = 0; key < keys_; key += most_keys_) {
      const Keys keys = {key, std::min(keys_, key + most_keys_)};
      at::parallel_for(0, all_kv_heads_ * shares_, 1, [&](int64_t first, int64_t last) {
        const c10::InferenceMode inference;
        for (int64_t i = first; i < last; ++i) RunShare(keys, i / shares_, i % shares_);
      });
      if (shares_ > 1) AddSums(keys);
    }
  }

 private:
  struct Keys {
    int64_t begin, end;
    int64_t count() const { return end - begin; }
  };

  // Some queries of one head.
  struct Block {
    int64_t batch_row, head, begin, end;
    int64_t count() const { return end - begin; }
  };

  // A thread's memory for a block.
  struct Scratch {
    Wide *queries, *d_out, *weights, *d_scores, *keys, *values;
  };

  static at::Tensor MakeWide(int64_t numbers) {
    return at::empty({numbers}, c10::CppTypeToScalarType<Wide>::value);
  }
  int64_t ScratchNumbers() const {
    const int64_t keys = std::is_same_v<Number, Wide> ? 0 : most_keys_;
    return (most_queries_ + keys) * (dim_ + value_dim_) + 2 * most_queries_ * most_keys_;
  }
  int64_t SumNumbers() const { return most_keys_ * (dim_ + value_dim_); }

  Scratch MakeScratch() const {
    Scratch s;
    s.queries = scratch_.mutable_data_ptr<Wide>() + at::get_thread_num() * ScratchNumbers();
    s.d_out = s.queries + most_queries_ * dim_;
    s.weights = s.d_out + most_queries_ * value_dim_;
    s.d_scores = s.weights + most_queries_ * most_keys_;
    s.keys = s.d_scores + most_queries_ * most_keys_;
    s.values = s.keys + most_keys_ * dim_;
    return s;
  }

  // Rows [begin, end) of a key head, in place where they are wide already.
  at::Tensor Widened(const Rows<Number>& rows, int64_t kv_head, const Keys& keys, int64_t columns,
                     Wide* memory) const {
    const Number* const from = rows.At(kv_head / kv_heads_, kv_head % kv_heads_, keys.begin);
    if constexpr (std::is_same_v<Number, Wide>) {
      return Matrix(from, keys.count(), columns, rows.row);
    } else {
      for (int64_t i = 0; i < keys.count(); ++i)
        CopyRow(memory + i * columns, from + i * rows.row, columns);
      return Matrix(memory, keys.count(), columns, columns);
    }
  }

  // Where the gradients of these keys are summed: the caller's memory, or the share's own.
  at::Tensor Sums(const at::Tensor& into, int64_t kv_head, int64_t share, const Keys& keys,
                  bool of_values) const {
    if (shares_ == 1) {
      return into.select(0, kv_head / kv_heads_)
          .select(0, kv_head % kv_heads_)
          .narrow(0, keys.begin, keys.count());
    }
    Wide* const memory = sums_.mutable_data_ptr<Wide>() +
                         (kv_head * shares_ + share) * SumNumbers() +
                         (of_values ? most_keys_ * dim_ : 0);
    const int64_t columns = of_values ? value_dim_ : dim_;
    return Matrix(memory, keys.count(), columns, columns);
  }

  void RunShare(const Keys& keys, int64_t kv_head, int64_t share) const {
    const Scratch s = MakeScratch();
    const at::Tensor k = Widened(k_, kv_head, keys, dim_, s.keys);
    const at::Tensor v = Widened(v_, kv_head, keys, value_dim_, s.values);
    const at::Tensor d_k = Sums(into_.d_k, kv_head, share, keys, false);
    const at::Tensor d_v = Sums(into_.d_v, kv_head, share, keys, true);
    if (shares_ > 1) {
      d_k.zero_();
      d_v.zero_();
    }
    // One after the other to each share: under a diagonal later queries see more.
    for (int64_t i = share; i < group_ * blocks_; i += shares_) {
      const int64_t begin = i / group_ * kQueriesAtOnce;
      const Block block = {kv_head / kv_heads_, kv_head % kv_heads_ * group_ + i % group_, begin,
                           std::min(queries_, begin + kQueriesAtOnce)};
      // The keys that the block sees, counted from the first.
      const int64_t first = std::max<int64_t>(0, block.begin + lo_ - keys.begin);
      const int64_t last = std::min(keys.count(), block.end + hi_ - keys.begin);
      if (first >= last) continue;
      const Keys seen = {keys.begin + first, keys.begin + last};
      AddBlock(s, block, seen, k.narrow(0, first, last - first), v.narrow(0, first, last - first),
               d_k.narrow(0, first, last - first), d_v.narrow(0, first, last - first));
    }
  }

  void AddBlock(const Scratch& s, const Block& block, const Keys& keys, const at::Tensor& k,
                const at::Tensor& v, const at::Tensor& d_k, const at::Tensor& d_v) const {
    CopyRows(s.queries, q_, block, dim_);
    CopyRows(s.d_out, d_out_, block, value_dim_);
    const at::Tensor q = Matrix(s.queries, block.count(), dim_, dim_);
    const at::Tensor d_out = Matrix(s.d_out, block.count(), value_dim_, value_dim_);
    const at::Tensor weights = Matrix(s.weights, block.count(), keys.count(), keys.count());
    const at::Tensor d_scores = Matrix(s.d_scores, block.count(), keys.count(), keys.count());
    MultiplyBy(weights, q, k, scale_);
    MultiplyBy(d_scores, d_out, v, 1);
    for (int64_t i = 0; i < block.count(); ++i) {
      Row(s.weights + i * keys.count(), s.d_scores + i * keys.count(), block, block.begin + i,
          keys);
    }
    d_v.addmm_(weights.t(), d_out);
    d_k.addmm_(d_scores.t(), q, /*beta=*/1, scale_);
    into_.d_q.select(0, block.batch_row)
        .select(0, block.head)
        .narrow(0, block.begin, block.count())
        .addmm_(d_scores, k, /*beta=*/1, scale_);
  }

  // Zeros where a row saw nothing: what is there may be anything.
  void CopyRows(Wide* to, const Rows<Number>& rows, const Block& block, int64_t columns) const {
    for (int64_t i = block.begin; i < block.end; ++i, to += columns) {
      if (SawNothing(block, i)) {
        std::fill_n(to, columns, Wide{});
      } else {
        CopyRow(to, rows.At(block.batch_row, block.head, i), columns);
      }
    }
  }

  bool SawNothing(const Block& block, int64_t query) const {
    return *lse_.At(block.batch_row, block.head, query) == -std::numeric_limits<Wide>::infinity();
  }

  // Of one query: scores become weights, gradients of weights those of scores; 0 where hidden.
  void Row(Wide* weights, Wide* d_scores, const Block& block, int64_t query,
           const Keys& keys) const {
    const int64_t n = keys.count();
    int64_t first = std::clamp<int64_t>(query + lo_ - keys.begin, 0, n);
    int64_t last = std::clamp<int64_t>(query + hi_ + 1 - keys.begin, first, n);
    if (SawNothing(block, query)) first = last = 0;
    std::fill_n(weights, first, Wide{});
    std::fill_n(d_scores, first, Wide{});
    if (last > first) {
      if (terms_.any()) {
        terms_.AddTo(weights + first, block.batch_row, block.head, query, keys.begin + first,
                     last - first, Wide{1});
      }
      WeighAgain(weights + first, last - first, *lse_.At(block.batch_row, block.head, query));
      ScoreGradients(d_scores + first, weights + first, last - first,
                     *delta_.At(block.batch_row, block.head, query));
    }
    std::fill_n(weights + last, n - last, Wide{});
    std::fill_n(d_scores + last, n - last, Wide{});
  }

  // In the order of the shares.
  void AddSums(const Keys& keys) const {
    at::parallel_for(0, all_kv_heads_, 1, [&](int64_t begin, int64_t end) {
      const c10::InferenceMode inference;
      for (int64_t head = begin; head < end; ++head) {
        for (const bool of_values : {false, true}) {
          const at::Tensor total = (of_values ? into_.d_v : into_.d_k)
                                       .select(0, head / kv_heads_)
                                       .select(0, head % kv_heads_)
                                       .narrow(0, keys.begin, keys.count());
          for (int64_t share = 0; share < shares_; ++share)
            total.add_(Sums(total, head, share, keys, of_values));
        }
      }
    });
  }

  const Gradients& into_;
  const Rows<Number> q_, d_out_;
  const Rows<Wide> lse_, delta_;
  const Rows<Number> k_, v_;
  const int64_t lo_, hi_;
  const double scale_;
  const RowTerms<Number> terms_;
  const int64_t kv_heads_, all_kv_heads_;  // of a batch row; of all
  const int64_t group_;                    // query heads of a key head
  const int64_t queries_, keys_, dim_, value_dim_;
  const int64_t blocks_;  // of queries
  const int64_t shares_;  // of the blocks of a key head
  const int64_t most_queries_, most_keys_;
  const at::Tensor scratch_;  // by thread
  const at::Tensor sums_;     // by key head and share
};

}  // namespace

at::Tensor RowDeltas(const at::Tensor& out, const at::Tensor& d_out, const at::Tensor& d_lse) {
  constexpr int64_t kRowsAtOnce = 1024;
  const at::ScalarType wide = WideType(out.scalar_type());
  const int64_t rows = out.size(2);
  at::Tensor delta = at::empty({out.size(0), out.size(1), rows}, out.options().dtype(wide));
  for (int64_t head = 0; head < out.size(0) * out.size(1); ++head) {
    const int64_t b = head / out.size(1), h = head % out.size(1);
    for (int64_t row = 0; row < rows; row += kRowsAtOnce) {
      const int64_t n = std::min(kRowsAtOnce, rows - row);
      delta[b][h].narrow(0, row, n).copy_(
          (out[b][h].narrow(0, row, n).to(wide) * d_out[b][h].narrow(0, row, n).to(wide)).sum(-1));
    }
  }
  if (d_lse.defined()) delta.sub_(d_lse);
  return delta;
}

at::Tensor SinkGradients(const at::Tensor& sink_logits, const at::Tensor& lse,
                         const at::Tensor& delta) {
  const at::Tensor weights = (sink_logits.to(lse.scalar_type()).view({1, -1, 1}) - lse).exp();
  return (weights * delta).masked_fill(lse.isneginf(), 0).sum(at::IntArrayRef{0, 2}).neg();
}

void CheckGradients(const Gradients& into, const AnsweredQueries& queries, const at::Tensor& k,
                    const at::Tensor& v) {
  const at::ScalarType type = queries.q.scalar_type();
  const at::ScalarType wide = WideType(type);
  for (const at::Tensor* tensor : {&queries.d_out, &k, &v})
    TORCH_CHECK(tensor->scalar_type() == type, "numbers of different types");
  for (const at::Tensor* tensor : {&queries.lse, &queries.delta, &into.d_q, &into.d_k, &into.d_v})
    TORCH_CHECK(tensor->scalar_type() == wide, "gradients of ", type, " are summed in ", wide);
  TORCH_CHECK(into.d_q.sizes() == queries.q.sizes() && into.d_k.sizes() == k.sizes() &&
                  into.d_v.sizes() == v.sizes(),
              "gradients of other shapes");
  for (const at::Tensor* tensor :
       {&queries.q, &queries.d_out, &k, &v, &into.d_q, &into.d_k, &into.d_v}) {
    TORCH_CHECK(tensor->size(3) == 1 || tensor->stride(3) == 1, "strided last dim");
  }
}

void AccumulateGradients(const Gradients& into, const AnsweredQueries& queries, const at::Tensor& k,
                         const at::Tensor& v, const Tile& tile, double scale,
                         const ScoreTerms& terms) {
  CheckGradients(into, queries, k, v);
  CheckTerms(terms, queries.q);
  const int64_t q_rows = tile.q_end - tile.q_begin, k_rows = tile.k_end - tile.k_begin;
  if (q_rows <= 0 || k_rows <= 0 || k.size(0) * k.size(1) == 0) return;
  const auto of_queries = [&](const at::Tensor& t) { return t.narrow(2, tile.q_begin, q_rows); };
  const auto of_keys = [&](const at::Tensor& t) { return t.narrow(2, tile.k_begin, k_rows); };
  const Gradients into_tile = {of_queries(into.d_q), of_keys(into.d_k), of_keys(into.d_v)};
  const AnsweredQueries of_tile = {of_queries(queries.q), of_queries(queries.d_out),
                                   of_queries(queries.lse), of_queries(queries.delta)};
  const int64_t lo = std::clamp(tile.lo.value_or(-q_rows), -q_rows, k_rows);
  const int64_t hi = std::clamp(tile.hi.value_or(k_rows), -q_rows, k_rows);
  const auto run = [&](auto number, auto wide) {
    BackwardBlock<decltype(number), decltype(wide)>(into_tile, of_tile, of_keys(k), of_keys(v), lo,
                                                    hi, scale, TermsOf(tile, terms))
        .Run();
  };
  switch (queries.q.scalar_type()) {
    case at::kDouble:
      return run(double{}, double{});
    case at::kFloat:
      return run(float{}, float{});
    case at::kBFloat16:
      return run(BFloat16Bits{}, float{});
    case at::kHalf:
      return run(HalfBits{}, float{});
    default:
      TORCH_CHECK(false, "no gradients of ", queries.q.scalar_type());
  }
}

}  // namespace ringserve
