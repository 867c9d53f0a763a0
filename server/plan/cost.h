// The cost model: bytes moved, imbalance and estimated seconds of a workload under a rotate method.
#pragma once

#include <cstdint>
#include <vector>

#include "proto/tensor_shape.h"
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
// count as 0. A pair of the backward pass takes five products where one of the forward pass takes
// two.
Speed SpeedOf(const v1::Measurements& measurements, const v1::AttentionSpec& spec, Pass pass = {});

// A kernel call and its views.
inline constexpr double kSecondsPerTile = 4e-6;

// How long the ranks compute, each times its pace (see Workload).
struct ComputeSeconds {
  std::vector<double> lockstep;  // by step: the busiest rank
  double lockstep_total = 0;     // sum of `lockstep`, or a better bound
  double busiest = 0;            // in all: the busiest rank, and on average
  double mean = 0;
  int64_t tiles = 0;  // of the rank that has most, or more
};

// From pairs and pieces alone; where there are few tiles, tile_cost.h knows better.
ComputeSeconds ComputeOf(const Workload& workload, const Speed& speed);

struct Cost {
  double seconds = 0;
  double balanced_seconds = 0;  // if nobody waited for anybody
  // By which costs are compared. What an imbalance wastes counts twice: on workers that are not all
  // alike it is more than foreseen.
  double judged_seconds = 0;
  std::vector<uint64_t> bytes_sent;  // by rank: what the steps send, exactly
  uint64_t total_bytes = 0;
  int64_t tiles = 0;
  double imbalance = 1;
  double imbalance_total = 1;
  bool imbalance_is_bound = false;
};

// Bytes by rank, of those that `rotate` moves: see KvShardBytes, QShardBytes and PartialBytes.
// Backward: GradientBytes, and what every rank but 0 sends to that; else there are none.
struct ParcelBytes {
  std::vector<uint64_t> kv, q, partial;
  std::vector<uint64_t> gradients = {};
  uint64_t sink_gradients = 0;
};

//   all-to-all  seconds = sum over steps of max(busiest rank's compute, largest transfer)
//   all-gather  seconds = largest sum of received bytes + largest sum of compute
//   pass-Q      as all-to-all, of what a rank sends in a step: a shard of Q, and the partial of the
//               step before. Nothing hides the last partials, which come in a step of their own
//   backward    as all-to-all: gradients go in the step after their tiles. Where K and V are
//               gathered, this comes before it: the largest sum of received bytes
// all + overhead per rank beyond the first. What merging partials takes is not counted. `workload`
// is MakePassQWorkload's for pass-Q, else MakeWorkload's, and `compute` belongs to it; all-gather
// takes that of all-to-all. imbalance, of pairs times pace: all-to-all, pass-Q and backward, sum
// over steps of max work / sum over steps of mean work; all-gather, max / mean of totals
// (imbalance_total). 1 where nothing is visible.
Cost Estimate(const Workload& workload, const ComputeSeconds& compute, const ParcelBytes& bytes,
              v1::RotateMethod rotate, const Speed& speed);

// The better of two costs: fewer judged seconds; where they are the same, fewer bytes, then fewer
// tiles.
bool Cheaper(const Cost& a, const Cost& b);

}  // namespace ringserve
