#include "tests/support/random_mask.h"

#include <algorithm>
#include <string>

namespace ringserve::test {
namespace {

constexpr int kMostDocuments = 12;

void SetAlignment(Random& random, int64_t q_len, int64_t kv_len, v1::Mask& mask) {
  switch (random.Between(0, 5)) {
    case 0:
      mask.set_bottom_right(true);
      break;
    case 1:  // hides some rows' keys, shows others all
      mask.set_q_offset(random.Between(-q_len, kv_len));
      break;
    case 2:  // about the ends, where all or nothing is seen
      mask.set_q_offset(random.Pick({-q_len, kv_len}) + random.Between(-2, 2));
      break;
    case 3:
      mask.set_bottom_right(false);
      break;
    default:
      break;
  }
}

// A number of keys: none, some, all, more than there are.
int64_t Keys(Random& random, int64_t kv_len) {
  switch (random.Between(0, 7)) {
    case 0:
      return 0;
    case 1:
      return kv_len + random.Between(-1, 1);
    case 2:
      return int64_t{1} << 40;
    case 3:
      return random.Between(0, kv_len);
    default:
      return random.BetweenByMagnitude(1, kv_len);
  }
}

void SetWindow(Random& random, int64_t kv_len, v1::Mask& mask) {
  v1::Window& window = *mask.mutable_window();
  if (random.Chance(0.8)) window.set_left(Keys(random, kv_len));
  if (random.Chance(0.7)) window.set_right(Keys(random, kv_len));
  if (random.Chance(0.4)) mask.set_sinks(Keys(random, kv_len));
}

void SetDocuments(Random& random, int64_t q_len, int64_t kv_len, v1::Mask& mask) {
  v1::Documents& documents = *mask.mutable_documents();
  const bool cross = random.Chance(0.5);
  const bool padded = random.Chance(0.4);
  int64_t q_left = cross ? q_len : std::min(q_len, kv_len), kv_left = kv_len;
  const int64_t count = random.Between(0, kMostDocuments);
  const auto length = [&](int64_t& left, bool last) {
    int64_t taken = last && !padded ? left : random.Between(0, left);
    if (random.Chance(0.1)) taken = 0;
    if (random.Chance(0.3)) taken = std::min<int64_t>(left, random.Between(1, 3));
    left -= taken;
    return taken;
  };
  for (int64_t i = 1; i <= count; ++i) {
    documents.add_q_lengths(length(q_left, i == count));
    if (cross) documents.add_kv_lengths(length(kv_left, i == count));
  }
}

void SetBlocks(Random& random, int64_t q_len, int64_t kv_len, v1::Mask& mask) {
  v1::BlockMask& blocks = *mask.mutable_blocks();
  // As many blocks as a case can bear.
  blocks.set_q_block(random.BetweenByMagnitude(1 + q_len / 40, q_len + 3));
  blocks.set_kv_block(random.BetweenByMagnitude(1 + kv_len / 40, kv_len + 3));
  const int64_t rows = (q_len + blocks.q_block() - 1) / blocks.q_block();
  const int64_t columns = (kv_len + blocks.kv_block() - 1) / blocks.kv_block();
  const double set = random.Pick({0.1, 0.5, 0.9, 1.0});
  std::string row;
  for (int64_t r = 0; r < rows; ++r) {
    if (r == 0 || random.Chance(0.6)) {  // else the row above once more
      row.assign((columns + 7) / 8, '\0');
      for (size_t bit = 0; bit < 8 * row.size(); ++bit) {  // past the last column, too
        if (random.Chance(set)) row[bit / 8] |= static_cast<char>(1 << (bit % 8));
      }
    }
    *blocks.mutable_bits() += row;
  }
}

// Cuts a slice in two along q, k or a diagonal, again and again, and keeps most of what comes out:
// disjoint because of how they are made.
void AddSlices(Random& random, const v1::Slice& slice, int cuts, v1::Mask& mask) {
  if (cuts == 0) {
    if (random.Chance(0.75)) *mask.add_slices() = slice;
    return;
  }
  v1::Slice first = slice, second = slice;
  switch (random.Between(0, 2)) {
    case 0: {
      const int64_t at = random.Between(slice.q_begin(), slice.q_end());
      first.set_q_end(at);
      second.set_q_begin(at);
      break;
    }
    case 1: {
      const int64_t at = random.Between(slice.k_begin(), slice.k_end());
      first.set_k_end(at);
      second.set_k_begin(at);
      break;
    }
    default: {
      const int64_t least = slice.has_lo() ? slice.lo() : slice.k_begin() - slice.q_end() - 1;
      const int64_t most = slice.has_hi() ? slice.hi() : slice.k_end() - slice.q_begin() + 1;
      if (least >= most) return AddSlices(random, slice, 0, mask);
      const int64_t at = random.Between(least, most - 1);
      first.set_hi(at);
      second.set_lo(at + 1);
    }
  }
  AddSlices(random, first, cuts - 1, mask);
  AddSlices(random, second, cuts - 1, mask);
}

void SetSlices(Random& random, int64_t q_len, int64_t kv_len, v1::Mask& mask) {
  v1::Slice whole;
  whole.set_q_begin(random.Chance(0.7) ? 0 : random.Between(0, q_len));
  whole.set_q_end(random.Chance(0.7) ? q_len : random.Between(whole.q_begin(), q_len));
  whole.set_k_begin(random.Chance(0.7) ? 0 : random.Between(0, kv_len));
  whole.set_k_end(random.Chance(0.7) ? kv_len : random.Between(whole.k_begin(), kv_len));
  AddSlices(random, whole, static_cast<int>(random.Between(0, 4)), mask);
  // Their order means nothing.
  for (int i = mask.slices_size() - 1; i > 0; --i) {
    mask.mutable_slices()->SwapElements(i, static_cast<int>(random.Between(0, i)));
  }
}

}  // namespace

v1::Mask RandomMask(Random& random, int64_t q_len, int64_t kv_len) {
  v1::Mask mask;
  mask.set_causal(random.Chance(0.6));
  SetAlignment(random, q_len, kv_len, mask);
  if (random.Chance(0.3)) return mask;
  // Mostly one or two of the others.
  if (mask.causal() && random.Chance(0.3)) mask.set_prefix(Keys(random, kv_len));
  if (random.Chance(0.4)) SetWindow(random, kv_len, mask);
  if (random.Chance(0.35)) SetDocuments(random, q_len, kv_len, mask);
  if (random.Chance(0.25)) SetBlocks(random, q_len, kv_len, mask);
  if (random.Chance(0.25)) SetSlices(random, q_len, kv_len, mask);
  return mask;
}

}  // namespace ringserve::test
