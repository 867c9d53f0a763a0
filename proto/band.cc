#include "proto/band.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace ringserve {
namespace {

bool HasLo(const Band& band) { return band.lo != Band::kUnboundedLo; }
bool HasHi(const Band& band) { return band.hi != Band::kUnboundedHi; }

// Pairs (i, j) of an n x m rectangle at the origin with j - i > c.
uint64_t AreaAbove(int64_t n, int64_t m, int64_t c) {
  const int64_t full_rows = std::clamp<int64_t>(-c, 0, n);
  const int64_t end = std::clamp<int64_t>(m - c - 1, full_rows, n);
  uint64_t count = end - full_rows;
  const uint64_t full = static_cast<uint64_t>(full_rows) * m;
  if (count == 0) return full;
  // Rows lose one pair each: an arithmetic series. One of the factors is even.
  uint64_t sum = (m - c - 1 - full_rows) + (m - c - end);
  (count % 2 == 0 ? count : sum) /= 2;
  return full + count * sum;
}

}  // namespace

bool Empty(const Band& band) {
  if (band.q_begin >= band.q_end || band.k_begin >= band.k_end || band.lo > band.hi) return true;
  // k - q takes every value between the rectangle's corners.
  return (HasHi(band) && band.k_begin - (band.q_end - 1) > band.hi) ||
         (HasLo(band) && band.k_end - 1 - band.q_begin < band.lo);
}

Band Cut(const Band& band, int64_t q_begin, int64_t q_end, int64_t k_begin, int64_t k_end) {
  Band cut = band;
  cut.q_begin = std::max(band.q_begin, q_begin);
  cut.q_end = std::min(band.q_end, q_end);
  cut.k_begin = std::max(band.k_begin, k_begin);
  cut.k_end = std::min(band.k_end, k_end);
  return Normalized(cut);
}

Band Normalized(const Band& band) {
  if (Empty(band)) return Band{};
  Band box = band;
  // Rows that see a key first: then the first and the last of them give the keys.
  if (HasHi(box)) box.q_begin = std::max(box.q_begin, box.k_begin - box.hi);
  if (HasLo(box)) box.q_end = std::min(box.q_end, box.k_end - box.lo);
  if (HasLo(box)) box.k_begin = std::max(box.k_begin, box.q_begin + box.lo);
  if (HasHi(box)) box.k_end = std::min(box.k_end, box.q_end + box.hi);
  if (box.lo <= box.k_begin - (box.q_end - 1)) box.lo = Band::kUnboundedLo;
  if (box.hi >= box.k_end - 1 - box.q_begin) box.hi = Band::kUnboundedHi;
  return box;
}

Band Intersection(const Band& a, const Band& b) {
  Band both = a;
  both.lo = std::max(a.lo, b.lo);
  both.hi = std::min(a.hi, b.hi);
  return Cut(both, b.q_begin, b.q_end, b.k_begin, b.k_end);
}

Band Shifted(const Band& band, int64_t dq, int64_t dk) {
  Band shifted = band;
  shifted.q_begin += dq;
  shifted.q_end += dq;
  shifted.k_begin += dk;
  shifted.k_end += dk;
  if (HasLo(band)) shifted.lo += dk - dq;
  if (HasHi(band)) shifted.hi += dk - dq;
  return shifted;
}

uint64_t Area(const Band& band) {
  if (Empty(band)) return 0;
  const int64_t queries = band.q_end - band.q_begin;
  const int64_t keys = band.k_end - band.k_begin;
  const int64_t corner = band.k_begin - band.q_begin;
  uint64_t area = static_cast<uint64_t>(queries) * keys;
  if (HasHi(band)) area -= AreaAbove(queries, keys, band.hi - corner);
  // Transposed, what lies below the lower diagonal lies above.
  if (HasLo(band)) area -= AreaAbove(keys, queries, corner - band.lo);
  return area;
}

bool IsFull(const Band& band) { return !Empty(band) && !HasLo(band) && !HasHi(band); }

bool Sees(const Band& band, int64_t q, int64_t k) {
  return band.q_begin <= q && q < band.q_end && band.k_begin <= k && k < band.k_end &&
         band.lo <= k - q && k - q <= band.hi;
}

std::string ToString(const Band& band) {
  return absl::StrCat("q[", band.q_begin, ",", band.q_end, ") k[", band.k_begin, ",", band.k_end,
                      ") ", HasLo(band) ? absl::StrCat(band.lo) : "-inf",
                      "<=k-q<=", HasHi(band) ? absl::StrCat(band.hi) : "inf");
}

}  // namespace ringserve
