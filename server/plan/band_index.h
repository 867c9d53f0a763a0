// Finds the bands that touch a range of queries. Immutable; refers to the bands it is given.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "proto/band.h"

namespace ringserve {

class BandIndex {
 public:
  // `bands` are disjoint and sorted by q_begin (see CompileMasks); they outlive the index. O(n).
  explicit BandIndex(const std::vector<Band>& bands);

  // A run of neighbours that holds every band with a query in [q_begin, q_end); O(log n).
  std::span<const Band> Near(int64_t q_begin, int64_t q_end) const;

 private:
  std::span<const Band> bands_;
  std::vector<int64_t> reach_;  // largest q_end up to and including this band: ascending
};

}  // namespace ringserve
