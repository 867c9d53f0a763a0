// Workload: what a mask costs under a layout. Which rank does how much, what lockstep waits for,
// and who needs whose shard. Counts pairs and segments; knows no heads, bytes or seconds.
#pragma once

#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "proto/band.h"
#include "server/plan/layout.h"
#include "server/plan/tiles.h"

namespace ringserve {

// The exact lockstep work is computed up to so many (query segment, key segment, band) triples.
inline constexpr int64_t kMostPiecePairs = 10'000'000;

struct Workload {
  int ranks = 0;
  std::vector<uint64_t> work;      // by rank: visible pairs over all batch rows
  std::vector<uint64_t> paced;     // by rank: work times its pace
  std::vector<uint64_t> lockstep;  // by ring step: pairs of the busiest rank, times its pace
  bool lockstep_is_bound = false;  // an upper bound: exact would cost more than kMostPiecePairs
  uint64_t lockstep_total = 0;     // sum of `lockstep`, or a better bound
  // [rank * ranks + owner]: whether a pair of rank's queries and owner's keys is visible (pass-Q:
  // of rank's keys and owner's queries).
  std::vector<uint8_t> needs;
  std::vector<int>
      reach;           // by owner: how many ranks up the ring the last one that needs its shard is
  int64_t pieces = 0;  // of the busiest rank: it has at most so many tiles
  int64_t piece_pairs = 0;  // of all ranks: what this computation cost

  bool Needs(int rank, int owner) const {
    return needs[static_cast<size_t>(rank) * ranks + owner] != 0;
  }
  // The step of the ring in which `rank` has the shard of `owner`.
  int StepOf(int rank, int owner) const {
    return rank >= owner ? rank - owner : rank - owner + ranks;
  }
};

// How tiles are made of what is visible; see AddTiles of rank_plan.cc.
struct Tiling {
  bool fuses = true;           // pieces of several segments may be one tile
  bool per_batch_row = false;  // batch rows that see the same have tiles of their own, too
  Kernel kernel = Kernel::kMasks;
};

// `bands` as CompileMasks makes them. The visible pairs of all batch rows are at most 2^62. `pace`
// by rank, or empty, all 1: how much longer than on an average worker the same work takes.
// O(segments x bands near them + visible piece pairs), or without the latter where they are too
// many. As soon as a rank has more than `most_pieces` nothing else is looked at: then only `pieces`
// (more than that) means anything.
Workload MakeWorkload(const SequenceLayout& q, const SequenceLayout& kv,
                      const std::vector<std::vector<Band>>& bands, int64_t batch,
                      std::span<const double> pace = {}, Tiling tiling = {},
                      int64_t most_pieces = std::numeric_limits<int64_t>::max());

// Likewise where queries travel (pass-Q): `work` and `paced` are those on a rank's keys, an `owner`
// is one of queries, and lockstep step t of rank r is the work of the queries of rank r - t. Where
// MakeWorkload would bound the lockstep work, `pieces` is more than `most_pieces`.
Workload MakePassQWorkload(const SequenceLayout& q, const SequenceLayout& kv,
                           const std::vector<std::vector<Band>>& bands, int64_t batch,
                           std::span<const double> pace = {}, Tiling tiling = {},
                           int64_t most_pieces = std::numeric_limits<int64_t>::max() - 1);

}  // namespace ringserve
