// Bands: the arithmetic of mask slices. A band is a rectangle of (query, key) pairs cut by two
// diagonals. Closed under cutting into rectangles and under shifting, so the planner (area = work),
// the tiles and the tests use the same few lines. Pure integers; coordinates lie within +-2^42,
// areas may reach 2^63.
#pragma once

#include <cstdint>
#include <limits>
#include <string>

namespace ringserve {

// Query q sees key k iff q_begin <= q < q_end, k_begin <= k < k_end and lo <= k - q <= hi.
struct Band {
  static constexpr int64_t kUnboundedLo = std::numeric_limits<int64_t>::min();
  static constexpr int64_t kUnboundedHi = std::numeric_limits<int64_t>::max();

  int64_t q_begin = 0, q_end = 0;
  int64_t k_begin = 0, k_end = 0;
  int64_t lo = kUnboundedLo, hi = kUnboundedHi;

  friend bool operator==(const Band&, const Band&) = default;
};

// The pairs of `band` inside [q_begin, q_end) x [k_begin, k_end), shrunk to its bounding box, with
// a diagonal dropped (unbounded) where it cuts nothing. An empty band comes back as Band{}.
Band Cut(const Band& band, int64_t q_begin, int64_t q_end, int64_t k_begin, int64_t k_end);

// Shrinks to the bounding box; drops diagonals that cut nothing. Cut with the band's own rectangle.
Band Normalized(const Band& band);

// The pairs that both show, normalized.
Band Intersection(const Band& a, const Band& b);

// The same pairs with every query moved by dq and every key by dk.
Band Shifted(const Band& band, int64_t dq, int64_t dk);

// Number of visible pairs, in closed form: no loop over rows.
uint64_t Area(const Band& band);

bool Empty(const Band& band);

// No diagonal: every pair of the rectangle is visible. `band` is normalized.
bool IsFull(const Band& band);

bool Sees(const Band& band, int64_t q, int64_t k);

// "q[0,8) k[0,8) -inf<=k-q<=0"
std::string ToString(const Band& band);

}  // namespace ringserve
