// Finds the bands that may share pairs with a given one, among many. Immutable; refers to the bands
// it is given.
#pragma once

#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "proto/band.h"

namespace ringserve {

// A tree of boxes over the bands in their order: each node knows the ranges of q, of k and of the
// diagonal k - q that its bands lie in. The third keeps narrow bands apart that lie beside each
// other along the diagonal.
class BandTree {
 public:
  // `bands` are normalized and not empty; they outlive the tree. Any order is right; what is close
  // to each other should stand together, as in the order of CompileMasks. O(n).
  explicit BandTree(std::span<const Band> bands);

  // visit(band), in their order, for each band that overlaps `probe` in q, in k and in k - q: all
  // that share a pair with it are among them. `probe` is not empty. Returns how many nodes and
  // bands were looked at.
  template <typename Visit>
  int64_t ForEachNear(const Band& probe, Visit visit) const {
    int64_t looked_at = 0;
    if (!bands_.empty()) Descend(0, 0, bands_.size(), Extent(probe), visit, looked_at);
    return looked_at;
  }

  // Likewise for all bands that show something to the queries [begin, end), or some of the keys.
  template <typename Visit>
  int64_t ForEachNearQueries(int64_t begin, int64_t end, Visit visit) const {
    return ForEachNear({.q_begin = begin, .q_end = end, .k_begin = 0, .k_end = kBeyond}, visit);
  }
  template <typename Visit>
  int64_t ForEachNearKeys(int64_t begin, int64_t end, Visit visit) const {
    return ForEachNear({.q_begin = 0, .q_end = kBeyond, .k_begin = begin, .k_end = end}, visit);
  }

 private:
  struct Box {
    int64_t q_begin, q_end, k_begin, k_end, d_least, d_most;

    bool Meets(const Box& other) const {
      return q_begin < other.q_end && other.q_begin < q_end && k_begin < other.k_end &&
             other.k_begin < k_end && d_least <= other.d_most && other.d_least <= d_most;
    }
  };

  static constexpr size_t kLeaf = 8;
  static constexpr int64_t kBeyond = int64_t{1} << 42;  // every coordinate

  static Box Extent(const Band& band);
  const Box& Build(size_t node, size_t begin, size_t end);

  // Node i, of the bands [begin, end), has children 2i + 1 and 2i + 2, of half of them each.
  template <typename Visit>
  void Descend(size_t node, size_t begin, size_t end, const Box& probe, Visit& visit,
               int64_t& looked_at) const {
    ++looked_at;
    if (!boxes_[node].Meets(probe)) return;
    if (end - begin <= kLeaf) {
      looked_at += static_cast<int64_t>(end - begin);
      for (size_t i = begin; i < end; ++i) {
        if (Extent(bands_[i]).Meets(probe)) visit(bands_[i]);
      }
      return;
    }
    const size_t middle = begin + (end - begin) / 2;
    Descend(2 * node + 1, begin, middle, probe, visit, looked_at);
    Descend(2 * node + 2, middle, end, probe, visit, looked_at);
  }

  std::span<const Band> bands_;
  std::vector<Box> boxes_;  // by node
};

}  // namespace ringserve
