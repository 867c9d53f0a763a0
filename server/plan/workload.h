// Workload: what a mask costs under a layout. Which rank does how much, what lockstep waits for,
// and who needs whose keys. Counts pairs and segments; knows no heads, bytes or seconds.
#pragma once

#include <cstdint>
#include <vector>

#include "proto/band.h"
#include "server/plan/layout.h"

namespace ringserve {

// The exact lockstep work is computed up to so many (query segment, key segment, band) triples.
inline constexpr int64_t kMostPiecePairs = 10'000'000;

struct Workload {
  int ranks = 0;
  std::vector<uint64_t> work;      // by rank: visible pairs over all batch rows
  std::vector<uint64_t> lockstep;  // by ring step: pairs of the busiest rank
  bool lockstep_is_bound = false;  // an upper bound: exact would cost more than kMostPiecePairs
  uint64_t lockstep_total = 0;     // sum of `lockstep`, or a better bound
  std::vector<bool>
      needs;  // [rank * ranks + owner]: a pair of rank's queries and owner's keys is visible
  std::vector<int>
      reach;  // by owner: how many ranks up the ring the last one that needs its shard is
  // Of the busiest rank: what its number of tiles grows with. A window's tiles, by twos, are
  // pieces.
  int64_t pieces = 0;
  int64_t piece_pairs = 0;  // of all ranks: what this computation cost

  bool Needs(int rank, int owner) const { return needs[static_cast<size_t>(rank) * ranks + owner]; }
};

// `bands` as CompileMasks makes them. The visible pairs of all batch rows are at most 2^62.
// O(segments x bands near them + visible piece pairs), or without the latter where they are too
// many.
Workload MakeWorkload(const SequenceLayout& q, const SequenceLayout& kv,
                      const std::vector<std::vector<Band>>& bands, int64_t batch);

}  // namespace ringserve
