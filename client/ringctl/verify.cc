#include "client/ringctl/verify.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <random>
#include <set>
#include <thread>

#include "client/ringctl/elements.h"
#include "proto/machine.h"

namespace ringserve {
namespace {

constexpr int64_t kLeastRowsPerTask = 32;

void TakeWorse(std::optional<Deviation>& worst, const Deviation& other) {
  if (!worst.has_value() || other.excess() > worst->excess()) worst = other;
}

// NaN is larger than anything.
void TakeLarger(std::optional<Deviation>& largest, const Deviation& other) {
  if (!largest.has_value() ||
      (!(other.error() <= largest->error()) && !std::isnan(largest->error())))
    largest = other;
}

void Add(Verification& sum, const Verification& part) {
  sum.rows += part.rows;
  sum.undefined += part.undefined;
  if (part.out.has_value()) TakeWorse(sum.out, *part.out);
  if (part.lse.has_value()) TakeWorse(sum.lse, *part.lse);
  if (part.largest_out.has_value()) TakeLarger(sum.largest_out, *part.largest_out);
  if (part.largest_lse.has_value()) TakeLarger(sum.largest_lse, *part.largest_lse);
}

// Some rows that share a K/V head.
struct Task {
  int64_t batch = 0, kv_head = 0;
  std::vector<RowId> rows;
};

std::vector<Task> TasksOf(const v1::AttentionSpec& spec, const v1::Layout& layout, uint64_t seed,
                          int threads) {
  const int64_t group = spec.q_heads() / spec.kv_heads();
  const int64_t kv_heads = spec.batch() * spec.kv_heads();
  const int64_t parts = (2 * threads + kv_heads - 1) / kv_heads;
  std::vector<Task> tasks;
  for (int64_t batch = 0; batch < spec.batch(); ++batch) {
    for (int64_t kv_head = 0; kv_head < spec.kv_heads(); ++kv_head) {
      Task all{batch, kv_head, {}};
      for (int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
        for (const int64_t query : QueriesToVerify(spec.q_len(), layout.q(), batch, head, seed))
          all.rows.push_back({batch, head, query});
      }
      const int64_t rows = static_cast<int64_t>(all.rows.size());
      const int64_t size = std::max(kLeastRowsPerTask, (rows + parts - 1) / parts);
      for (int64_t first = 0; first < rows; first += size) {
        tasks.push_back(
            {batch,
             kv_head,
             {all.rows.begin() + first, all.rows.begin() + std::min(rows, first + size)}});
      }
    }
  }
  return tasks;
}

// Rows that see no key have out 0 and lse -inf, to the bit.
double AllowedOut(const ReferenceRow& right, double expected, const Tolerance& tolerance) {
  if (right.keys == 0) return 0;
  const auto& out = tolerance.out;
  const double scores = std::max(1.0, right.score_magnitude / 16), size = std::fabs(expected);
  return out.relative * size + out.spread * right.value_spread +
         out.magnitude * right.value_magnitude + out.floor +
         (out.score_relative * size + out.score_magnitude * right.value_magnitude) * scores;
}

double AllowedLse(const ReferenceRow& right, const Tolerance& tolerance) {
  if (right.keys == 0) return 0;
  const auto& lse = tolerance.lse;
  const double scores = std::max(1.0, right.score_magnitude / 16);
  return lse.absolute + (lse.score_absolute + lse.score_relative * std::fabs(right.lse)) * scores +
         lse.sum * std::sqrt(static_cast<double>(right.keys));
}

Verification CompareRow(const v1::AttentionSpec& spec, const Answer& answer, const RowId& id,
                        const ReferenceRow& right, const Tolerance& tolerance) {
  Verification result;
  if (right.undefined) {
    result.undefined = 1;
    return result;
  }
  result.rows = 1;
  const int64_t dim = ValueDimOf(spec);
  std::vector<double> out(dim);
  ReadElements(answer.out, spec.dtype(),
               RowElement(spec, id.batch, id.head, id.query, spec.q_heads(), spec.q_len(), dim),
               out);
  for (int64_t d = 0; d < dim; ++d) {
    if (!std::isfinite(right.out[d])) continue;  // a value that it sees is not
    const Deviation deviation{id, d, out[d], right.out[d],
                              AllowedOut(right, right.out[d], tolerance)};
    TakeWorse(result.out, deviation);
    TakeLarger(result.largest_out, deviation);
  }
  if (answer.lse.empty()) return result;
  double lse = 0;
  ReadElements(answer.lse, spec.dtype() == v1::DTYPE_F64 ? v1::DTYPE_F64 : v1::DTYPE_F32,
               (id.batch * spec.q_heads() + id.head) * spec.q_len() + id.query, std::span(&lse, 1));
  const double expected = answer.lse_without_sinks ? right.lse_without_sinks : right.lse;
  result.lse = result.largest_lse = {id, 0, lse, expected, AllowedLse(right, tolerance)};
  return result;
}

}  // namespace

double Deviation::error() const {
  return got == expected ? 0 : std::fabs(got - expected);  // -inf is -inf
}

double Deviation::excess() const {
  const double off = error();
  if (off == 0) return 0;
  return std::isnan(off) || tolerance == 0 ? kInfinity : off / tolerance;
}

bool Verification::ok() const {
  return (!out.has_value() || out->excess() <= 1) && (!lse.has_value() || lse->excess() <= 1);
}

Tolerance ToleranceOf(v1::DType dtype) {
  constexpr double kF32Sum = 0x1p-24, kF64Sum = 0x1p-53;
  switch (dtype) {
    case v1::DTYPE_F64:
      return {{0, 0, 0, 1e-300, 1e-12, 1e-12}, {0, 1e-12, 1e-12, kF64Sum}};
    // Weights, partials and the answer are rounded to 8 (F16: 11) bits, independently of each
    // other: hence the spread. The exp that kernels take for these types may be good to 13 bits
    // alone: hence the magnitude, and lse.
    case v1::DTYPE_BF16:
      return {{1.6e-2, 1.6e-2, 4e-4, 1e-37, 1e-5, 2e-6}, {2.5e-4, 2e-5, 1e-6, kF32Sum}};
    case v1::DTYPE_F16:
      return {{2e-3, 2e-3, 1.5e-4, 2e-7, 1e-5, 2e-6}, {2.5e-4, 2e-5, 1e-6, kF32Sum}};
    default:
      return {{0, 0, 0, 1e-37, 1e-5, 2e-6}, {0, 2e-5, 1e-6, kF32Sum}};
  }
}

std::vector<int64_t> QueriesToVerify(int64_t q_len, const v1::SequenceLayout& layout, int64_t batch,
                                     int64_t head, uint64_t seed) {
  std::set<int64_t> boundaries;
  const int rows = layout.rows_size();
  if (rows > 0) {
    const v1::RowLayout& row = layout.rows(rows == 1 ? 0 : static_cast<int>(batch % rows));
    for (const v1::RankSegments& rank : row.ranks()) {
      for (const v1::Segment& segment : rank.segments()) {
        for (const int64_t query : {segment.begin(), segment.end() - 1}) {
          if (query > 0 && query < q_len - 1) boundaries.insert(query);
        }
      }
    }
  }
  std::seed_seq mixed{seed, static_cast<uint64_t>(batch), static_cast<uint64_t>(head)};
  std::mt19937_64 random(mixed);
  std::set<int64_t> queries = {0, q_len - 1};
  const size_t most = static_cast<size_t>(kMaxVerifiedRows) - queries.size();
  std::sample(boundaries.begin(), boundaries.end(), std::inserter(queries, queries.end()), most,
              random);
  const size_t least = static_cast<size_t>(std::min(kMinVerifiedRows, q_len));
  std::uniform_int_distribution<int64_t> any(0, q_len - 1);
  while (queries.size() < least) queries.insert(any(random));
  return {queries.begin(), queries.end()};
}

Verification CompareRows(const v1::AttentionSpec& spec, const Answer& answer,
                         std::span<const RowId> rows, std::span<const ReferenceRow> right) {
  const Tolerance tolerance = ToleranceOf(spec.dtype());
  Verification result;
  for (size_t i = 0; i < rows.size(); ++i)
    Add(result, CompareRow(spec, answer, rows[i], right[i], tolerance));
  return result;
}

Verification Verify(const v1::AttentionSpec& spec, const v1::Layout& layout,
                    const AttendInputs& inputs, const Answer& answer, uint64_t seed, int threads) {
  if (threads <= 0) threads = AvailableThreads();
  const std::vector<Task> tasks = TasksOf(spec, layout, seed, threads);
  std::vector<Verification> results(tasks.size());
  std::atomic<size_t> next{0};
  const auto work = [&] {
    for (size_t i = next++; i < tasks.size(); i = next++)
      results[i] = CompareRows(
          spec, answer, tasks[i].rows,
          ReferenceAttention(spec, inputs, tasks[i].batch, tasks[i].kv_head, tasks[i].rows));
  };
  std::vector<std::thread> others;
  for (int i = 1; i < threads; ++i) others.emplace_back(work);
  work();
  for (std::thread& thread : others) thread.join();

  Verification sum;
  for (const Verification& result : results) Add(sum, result);
  return sum;
}

}  // namespace ringserve
