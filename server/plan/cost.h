// The cost model: bytes moved, imbalance and estimated seconds of a workload under a rotate method.
#pragma once

#include <cstdint>
#include <vector>

#include "ringserve/v1/attention.pb.h"
#include "server/plan/workload.h"

namespace ringserve {

// The workers a cost is estimated for: measurements applied to one request's heads and dims.
struct Speed {
  double seconds_per_pair = 0;
  double seconds_per_byte = 0;
  double latency_seconds = 0;
  double rank_overhead_seconds = 0;
};

// Rates that are not positive numbers are taken from DefaultMeasurements(), delays that are not
// count as 0.
Speed SpeedOf(const v1::Measurements& measurements, const v1::AttentionSpec& spec);

struct Cost {
  double seconds = 0;
  std::vector<uint64_t> bytes_sent;  // by rank: what the steps send, exactly
  uint64_t total_bytes = 0;
  int64_t pieces = 0;
  double imbalance = 1;
  double imbalance_total = 1;
  bool imbalance_is_bound = false;
};

// Bytes by rank, of those that `rotate` moves: see KvShardBytes, QShardBytes and PartialBytes.
struct ParcelBytes {
  std::vector<uint64_t> kv, q, partial;
};

//   all-to-all  seconds = sum over steps of max(busiest rank's work, largest transfer)
//   all-gather  seconds = largest sum of received bytes + largest total work
//   pass-Q      as all-to-all, of what a rank sends in a step: a shard of Q, and the partial of the
//               step before. Nothing hides the last partials, which come in a step of their own
// all + overhead per rank beyond the first + a few microseconds per tile of the busiest rank.
// where work is times the rank's pace (see Workload), as in what follows. What merging partials
// takes is not counted. `workload` is MakePassQWorkload's for pass-Q, else MakeWorkload's.
// imbalance: all-to-all and pass-Q, sum over steps of max work / sum over steps of mean work;
// all-gather, max / mean of totals (imbalance_total). 1 where nothing is visible.
Cost Estimate(const Workload& workload, const ParcelBytes& bytes, v1::RotateMethod rotate,
              const Speed& speed);

// The better of two costs: fewer seconds; where they are the same, fewer bytes, then fewer tiles.
bool Cheaper(const Cost& a, const Cost& b);

}  // namespace ringserve
