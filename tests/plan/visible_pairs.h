// (query, key) pairs one by one: the slow way that the plan's arithmetic is held against.
#pragma once

#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

#include "proto/band.h"
#include "server/plan/layout.h"
#include "server/plan/plan.h"
#include "tests/support/oracle.h"

namespace ringserve::test {

// Global positions by local row.
inline std::vector<int64_t> PositionsOf(const RowLayout& row, int rank) {
  std::vector<int64_t> positions;
  for (const Segment& segment : row[rank]) {
    for (int64_t p = segment.begin; p < segment.end; ++p) positions.push_back(p);
  }
  return positions;
}

// A batch row's grid of [q_len][kv_len] numbers.
class PairCounts {
 public:
  PairCounts(int64_t q_len, int64_t kv_len) : kv_len_(kv_len), counts_(q_len * kv_len) {}

  int& at(int64_t q, int64_t k) { return counts_[q * kv_len_ + k]; }
  friend bool operator==(const PairCounts&, const PairCounts&) = default;

 private:
  int64_t kv_len_;
  std::vector<int> counts_;
};

inline PairCounts PairsOf(const v1::AttentionSpec& spec, const Sees& sees, int64_t batch_row) {
  PairCounts pairs(spec.q_len(), spec.kv_len());
  for (int64_t q = 0; q < spec.q_len(); ++q) {
    for (int64_t k = 0; k < spec.kv_len(); ++k) pairs.at(q, k) = sees(batch_row, q, k);
  }
  return pairs;
}

inline PairCounts PairsOf(const v1::AttentionSpec& spec, const std::vector<Band>& bands) {
  PairCounts pairs(spec.q_len(), spec.kv_len());
  for (const Band& band : bands) {
    for (int64_t q = band.q_begin; q < band.q_end; ++q) {
      for (int64_t k = band.k_begin; k < band.k_end; ++k)
        pairs.at(q, k) += ringserve::Sees(band, q, k);
    }
  }
  return pairs;
}

// Whose queries and whose keys a tile of `rank` joins.
inline std::pair<int, int> SidesOf(const Plan& plan, int rank, const v1::Tile& tile) {
  if (plan.options.rotate() == v1::ROTATE_METHOD_PASS_Q) return {tile.owner(), rank};
  return {rank, tile.owner()};
}

// visit(q, k) for each pair that `tile` of `rank` shows of a batch row, global positions.
inline void ForEachPair(const Plan& plan, int rank, int64_t batch_row, const v1::Tile& tile,
                        const std::function<void(int64_t q, int64_t k)>& visit) {
  if (tile.batch_row() >= 0 && tile.batch_row() != batch_row) return;
  const auto [q_rank, k_rank] = SidesOf(plan, rank, tile);
  const std::vector<int64_t> q = PositionsOf(plan.q.row(batch_row), q_rank);
  const std::vector<int64_t> k = PositionsOf(plan.kv.row(batch_row), k_rank);
  for (int64_t i = tile.q_begin(); i < tile.q_end(); ++i) {
    for (int64_t j = tile.k_begin(); j < tile.k_end(); ++j) {
      const int64_t diagonal = (j - tile.k_begin()) - (i - tile.q_begin());
      if (tile.has_lo() && diagonal < tile.lo()) continue;
      if (tile.has_hi() && diagonal > tile.hi()) continue;
      visit(q.at(i), k.at(j));
    }
  }
}

}  // namespace ringserve::test
