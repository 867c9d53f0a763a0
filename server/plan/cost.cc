#include "server/plan/cost.h"

#include <algorithm>
#include <cmath>

#include "proto/tensor_shape.h"
#include "server/plan/memory.h"
#include "server/plan/plan.h"

namespace ringserve {
namespace {

// What a piece takes beyond its pairs, in pairs: its ragged edges, and reading and writing the
// accumulators of some tens of queries. See tile_cost.cc.
constexpr double kPairsPerPiece = 1'000;

double RateOr(double value, double fallback) {
  return std::isfinite(value) && value > 0 ? value : fallback;
}

double Delay(double value) { return std::isfinite(value) && value > 0 ? value : 0; }

// A shard that reaches d ranks is sent once by its owner and once by each rank on the way.
std::vector<uint64_t> RingBytes(const Workload& workload,
                                const std::vector<uint64_t>& shard_bytes) {
  std::vector<uint64_t> sent(workload.ranks);
  for (int owner = 0; owner < workload.ranks; ++owner) {
    for (int hop = 0; hop < workload.reach[owner]; ++hop) {
      uint64_t& bytes = sent[(owner + hop) % workload.ranks];
      bytes = SaturatingAdd(bytes, shard_bytes[owner]);
    }
  }
  return sent;
}

std::vector<uint64_t> PassQBytes(const Workload& workload, const ParcelBytes& bytes) {
  std::vector<uint64_t> sent = RingBytes(workload, bytes.q);
  for (int rank = 0; rank < workload.ranks; ++rank) {
    for (int owner = 0; owner < workload.ranks; ++owner) {
      if (owner == rank || !workload.Needs(rank, owner)) continue;
      sent[rank] = SaturatingAdd(sent[rank], bytes.partial[owner]);
    }
  }
  return sent;
}

// By step: the most bytes that a rank sends in it. What travels far has travelled all the way.
std::vector<uint64_t> RingTransfers(const Workload& workload,
                                    const std::vector<uint64_t>& shard_bytes) {
  std::vector<uint64_t> largest(workload.ranks);
  for (int owner = 0; owner < workload.ranks; ++owner) {
    const int reach = workload.reach[owner];
    if (reach > 0) largest[reach - 1] = std::max(largest[reach - 1], shard_bytes[owner]);
  }
  for (int step = workload.ranks - 1; step-- > 0;)
    largest[step] = std::max(largest[step], largest[step + 1]);
  return largest;
}

std::vector<uint64_t> PassQTransfers(const Workload& workload, const ParcelBytes& bytes) {
  const int ranks = workload.ranks;
  std::vector<uint64_t> largest(ranks + 1);
  for (int step = 0; step <= ranks; ++step) {
    for (int rank = 0; rank < ranks; ++rank) {
      const int here = (rank - step + ranks) % ranks, before = (here + 1) % ranks;
      uint64_t sent = step < ranks && workload.reach[here] > step ? bytes.q[here] : 0;
      if (step > 1 && workload.Needs(rank, before))
        sent = SaturatingAdd(sent, bytes.partial[before]);
      largest[step] = std::max(largest[step], sent);
    }
  }
  return largest;
}

// By step: the most bytes of gradients that a rank sends in it.
std::vector<uint64_t> GradientTransfers(const Workload& workload,
                                        const std::vector<uint64_t>& gradients) {
  std::vector<uint64_t> largest(workload.ranks + 1);
  for (int rank = 0; rank < workload.ranks; ++rank) {
    for (int owner = 0; owner < workload.ranks; ++owner) {
      if (owner == rank || !workload.Needs(rank, owner)) continue;
      uint64_t& in_step = largest[workload.StepOf(rank, owner) + 1];
      in_step = std::max(in_step, gradients[owner]);
    }
  }
  return largest;
}

void AddGradientBytes(const Workload& workload, const ParcelBytes& bytes,
                      std::vector<uint64_t>& sent) {
  for (int rank = 0; rank < workload.ranks; ++rank) {
    for (int owner = 0; owner < workload.ranks; ++owner) {
      if (owner == rank || !workload.Needs(rank, owner)) continue;
      sent[rank] = SaturatingAdd(sent[rank], bytes.gradients[owner]);
    }
    if (rank != 0) sent[rank] = SaturatingAdd(sent[rank], bytes.sink_gradients);
  }
}

// `transfers` by step: at least as many as there are steps to compute in.
double LockstepSeconds(const Workload& workload, const ComputeSeconds& compute,
                       const std::vector<uint64_t>& transfers, const Speed& speed) {
  double overlapped = 0;
  double exchanges = 0;
  for (size_t step = 0; step < transfers.size(); ++step) {
    const double exchange =
        transfers[step] > 0 ? speed.latency_seconds + transfers[step] * speed.seconds_per_byte : 0;
    exchanges += exchange;
    overlapped += std::max(exchange, step < compute.lockstep.size() ? compute.lockstep[step] : 0.0);
  }
  if (!workload.lockstep_is_bound) return overlapped;
  return std::min(overlapped, compute.lockstep_total + exchanges);
}

// Of the rank that receives most. Adds to what the owners have `sent`.
double GatherSeconds(const Workload& workload, const std::vector<uint64_t>& kv_bytes,
                     const Speed& speed, std::vector<uint64_t>& sent) {
  double longest = 0;
  for (int rank = 0; rank < workload.ranks; ++rank) {
    double exchange = 0;
    for (int owner = 0; owner < workload.ranks; ++owner) {
      if (owner == rank || !workload.Needs(rank, owner)) continue;
      sent[owner] = SaturatingAdd(sent[owner], kv_bytes[owner]);
      exchange += kv_bytes[owner] * speed.seconds_per_byte;
    }
    longest = std::max(longest, exchange > 0 ? exchange + speed.latency_seconds : 0);
  }
  return longest;
}

}  // namespace

v1::Measurements DefaultMeasurements() {
  v1::Measurements measurements;
  // One CPU thread, f32: 125 GFLOP/s at 2 (D + Dv) operations per pair and head, in units of D + Dv
  // = 256.
  measurements.set_pairs_per_second(125e9 / (2 * 256));
  measurements.set_link_bytes_per_second(1.3e9);
  measurements.set_link_latency_seconds(100e-6);
  measurements.set_rank_overhead_seconds(2.5e-3);
  return measurements;
}

Speed SpeedOf(const v1::Measurements& measurements, const v1::AttentionSpec& spec, Pass pass) {
  const v1::Measurements defaults = DefaultMeasurements();
  const double pairs_per_second =
      RateOr(measurements.pairs_per_second(), defaults.pairs_per_second());
  const double d = spec.head_dim(), dv = ValueDim(spec);
  const double units_per_pair = spec.q_heads() * (pass.backward ? 3 * d + 2 * dv : d + dv) / 256.0;
  return {
      .seconds_per_pair = units_per_pair / pairs_per_second,
      .seconds_per_byte =
          1 / RateOr(measurements.link_bytes_per_second(), defaults.link_bytes_per_second()),
      .latency_seconds = Delay(measurements.link_latency_seconds()),
      .rank_overhead_seconds = Delay(measurements.rank_overhead_seconds()),
  };
}

ComputeSeconds ComputeOf(const Workload& workload, const Speed& speed) {
  // Nobody knows which step the pieces of the busiest rank are in.
  const double pieces = static_cast<double>(workload.pieces) *
                        (kSecondsPerTile + kPairsPerPiece * speed.seconds_per_pair);
  ComputeSeconds compute;
  for (const uint64_t pairs : workload.lockstep)
    compute.lockstep.push_back(static_cast<double>(pairs) * speed.seconds_per_pair);
  compute.lockstep[0] += pieces;
  compute.lockstep_total =
      static_cast<double>(workload.lockstep_total) * speed.seconds_per_pair + pieces;
  for (const uint64_t pairs : workload.paced) {
    const double seconds = static_cast<double>(pairs) * speed.seconds_per_pair + pieces;
    compute.busiest = std::max(compute.busiest, seconds);
    compute.mean += seconds / workload.ranks;
  }
  compute.tiles = workload.pieces;
  return compute;
}

Cost Estimate(const Workload& workload, const ComputeSeconds& compute, const ParcelBytes& bytes,
              v1::RotateMethod rotate, const Speed& speed) {
  Cost cost;
  cost.tiles = compute.tiles;
  const bool backward = !bytes.gradients.empty();
  const bool gather = rotate == v1::ROTATE_METHOD_ALL_GATHER;
  const bool lockstep = !gather || backward;
  if (rotate == v1::ROTATE_METHOD_PASS_Q) {
    cost.bytes_sent = PassQBytes(workload, bytes);
    cost.seconds = LockstepSeconds(workload, compute, PassQTransfers(workload, bytes), speed);
  } else {
    std::vector<uint64_t> transfers(workload.ranks);
    if (backward) transfers = GradientTransfers(workload, bytes.gradients);
    if (gather) {
      cost.bytes_sent.resize(workload.ranks);
      cost.seconds = GatherSeconds(workload, bytes.kv, speed, cost.bytes_sent);
    } else {
      cost.bytes_sent = RingBytes(workload, bytes.kv);
      const std::vector<uint64_t> shards = RingTransfers(workload, bytes.kv);
      for (size_t step = 0; step < shards.size(); ++step)
        transfers[step] = SaturatingAdd(transfers[step], shards[step]);
    }
    cost.seconds +=
        lockstep ? LockstepSeconds(workload, compute, transfers, speed) : compute.busiest;
    if (backward) AddGradientBytes(workload, bytes, cost.bytes_sent);
  }
  const double overhead = (workload.ranks - 1) * speed.rank_overhead_seconds;
  cost.seconds += overhead;
  cost.balanced_seconds = compute.mean + overhead;
  for (uint64_t bytes : cost.bytes_sent) cost.total_bytes = SaturatingAdd(cost.total_bytes, bytes);

  cost.judged_seconds = cost.seconds;
  uint64_t total = 0;
  for (uint64_t pairs : workload.work) total += pairs;
  if (total == 0) return cost;
  const double mean = static_cast<double>(total) / workload.ranks;
  const uint64_t busiest = *std::max_element(workload.paced.begin(), workload.paced.end());
  cost.imbalance_total = busiest / mean;
  cost.imbalance = lockstep ? workload.lockstep_total / mean : cost.imbalance_total;
  cost.imbalance_is_bound = lockstep && workload.lockstep_is_bound;
  cost.judged_seconds += (cost.imbalance - 1) * compute.mean;
  return cost;
}

bool Cheaper(const Cost& a, const Cost& b) {
  // Rounding must not decide between cuts that cost the same.
  const double tolerance = 1e-9 * std::max(a.judged_seconds, b.judged_seconds);
  if (std::abs(a.judged_seconds - b.judged_seconds) > tolerance)
    return a.judged_seconds < b.judged_seconds;
  if (a.total_bytes != b.total_bytes) return a.total_bytes < b.total_bytes;
  return a.tiles < b.tiles;
}

}  // namespace ringserve
