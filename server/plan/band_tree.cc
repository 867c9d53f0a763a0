#include "server/plan/band_tree.h"

#include <algorithm>

namespace ringserve {

BandTree::BandTree(std::span<const Band> bands) : bands_(bands) {
  if (bands.empty()) return;
  size_t nodes = 1;
  for (size_t leaf = bands.size(); leaf > kLeaf; leaf = (leaf + 1) / 2) nodes = 2 * nodes + 1;
  boxes_.resize(nodes);
  Build(0, 0, bands.size());
}

BandTree::Box BandTree::Extent(const Band& band) {
  return {.q_begin = band.q_begin,
          .q_end = band.q_end,
          .k_begin = band.k_begin,
          .k_end = band.k_end,
          .d_least = std::max(band.lo, band.k_begin - (band.q_end - 1)),
          .d_most = std::min(band.hi, band.k_end - 1 - band.q_begin)};
}

const BandTree::Box& BandTree::Build(size_t node, size_t begin, size_t end) {
  const auto both = [](const Box& a, const Box& b) -> Box {
    return {std::min(a.q_begin, b.q_begin), std::max(a.q_end, b.q_end),
            std::min(a.k_begin, b.k_begin), std::max(a.k_end, b.k_end),
            std::min(a.d_least, b.d_least), std::max(a.d_most, b.d_most)};
  };
  Box& box = boxes_[node];
  if (end - begin <= kLeaf) {
    box = Extent(bands_[begin]);
    for (size_t i = begin + 1; i < end; ++i) box = both(box, Extent(bands_[i]));
  } else {
    const size_t middle = begin + (end - begin) / 2;
    box = both(Build(2 * node + 1, begin, middle), Build(2 * node + 2, middle, end));
  }
  return box;
}

}  // namespace ringserve
