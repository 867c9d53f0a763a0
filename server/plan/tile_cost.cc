#include "server/plan/tile_cost.h"

#include <algorithm>

#include "proto/band.h"
#include "server/plan/memory.h"

namespace ringserve {
namespace {

// Of the workers' own kernel: what it takes at once, and what the rest takes beside the products,
// in pairs. Fitted to single tiles of 1 to 8,192 queries and keys, f32 and bf16 (AMD EPYC, Zen 4).
constexpr int64_t kQueriesAtOnce = 64, kKeysInPanel = 64;
constexpr double kRowsPerBlock = 2;  // a block of n queries takes as long as n + 2
constexpr double kPairsPerRow = 20;  // reading and writing an accumulator
constexpr double kPairsPerKey = 28;  // laying out a key and a value
constexpr int64_t kMostBlocksLookedAt = 256;

// Of LibTorch's kernel: a partial per query and its merge; a dense mask is read with every pair.
constexpr double kPairsPerPartial = 60;
constexpr double kMaskedPair = 1.25;

int64_t RoundUp(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

double OwnKernelCost(const Band& tile, double group) {
  const int64_t queries = tile.q_end - tile.q_begin, keys = tile.k_end - tile.k_begin;
  const Band corner = Shifted(tile, -tile.q_begin, -tile.k_begin);
  const int64_t lo = std::max(corner.lo, -queries), hi = std::min(corner.hi, keys);
  const int64_t blocks = RoundUp(queries, kQueriesAtOnce) / kQueriesAtOnce;
  const int64_t stride = RoundUp(blocks, kMostBlocksLookedAt) / kMostBlocksLookedAt;
  double pairs = 0;
  int64_t looked_at = 0;
  for (int64_t block = 0; block < blocks; block += stride, ++looked_at) {
    const int64_t first = block * kQueriesAtOnce;
    const int64_t rows = std::min(kQueriesAtOnce, queries - first);
    const int64_t begin = std::max<int64_t>(0, first + lo) / kKeysInPanel * kKeysInPanel;
    const int64_t end = std::min(keys, first + rows + hi);
    if (begin >= end) continue;
    const int64_t slices = (end - 1) / kKernelKeysLaidOut - begin / kKernelKeysLaidOut + 1;
    pairs += (static_cast<double>(rows) + kRowsPerBlock) *
                 static_cast<double>(RoundUp(end - begin, kKeysInPanel)) +
             kPairsPerRow * static_cast<double>(rows * slices);
  }
  return pairs * static_cast<double>(blocks) / static_cast<double>(looked_at) +
         kPairsPerKey * static_cast<double>(keys) / group;
}

double LibTorchCost(const Band& tile) {
  const double queries = static_cast<double>(tile.q_end - tile.q_begin);
  const double keys = static_cast<double>(tile.k_end - tile.k_begin);
  const bool masked = !IsFull(tile) && !IsCornerCausal(tile);
  return (masked ? kMaskedPair * queries * keys : static_cast<double>(Area(tile))) +
         kPairsPerPartial * queries;
}

double SecondsOf(const v1::Tile& tile, const v1::AttentionSpec& spec, const Speed& speed) {
  Band band{.q_begin = tile.q_begin(),
            .q_end = tile.q_end(),
            .k_begin = tile.k_begin(),
            .k_end = tile.k_end()};
  const int64_t corner = tile.k_begin() - tile.q_begin();
  if (tile.has_lo()) band.lo = tile.lo() + corner;
  if (tile.has_hi()) band.hi = tile.hi() + corner;
  const double group = static_cast<double>(spec.q_heads()) / static_cast<double>(spec.kv_heads());
  const double batch_rows = tile.batch_row() < 0 ? static_cast<double>(spec.batch()) : 1;
  return batch_rows * TileCost(band, KernelOf(spec.dtype()), group) * speed.seconds_per_pair +
         kSecondsPerTile;
}

}  // namespace

double TileCost(const Band& tile, Kernel kernel, double group) {
  return kernel == Kernel::kAnyBand ? OwnKernelCost(tile, group) : LibTorchCost(tile);
}

ComputeSeconds ComputeOfTiles(const Plan& plan, std::span<const double> pace, const Speed& speed) {
  ComputeSeconds compute;
  compute.lockstep.resize(plan.ranks());
  for (int rank = 0; rank < plan.ranks(); ++rank) {
    double total = 0;
    int64_t tiles = 0;
    size_t index = 0;
    for (const v1::Step& step : StepsFor(plan, rank)) {
      double seconds = 0;
      for (const v1::Tile& tile : step.tiles()) seconds += SecondsOf(tile, plan.spec, speed);
      if (!pace.empty()) seconds *= pace[rank];
      if (index == compute.lockstep.size()) compute.lockstep.push_back(0);
      compute.lockstep[index] = std::max(compute.lockstep[index], seconds);
      total += seconds;
      tiles += step.tiles_size();
      ++index;
    }
    compute.busiest = std::max(compute.busiest, total);
    compute.mean += total / plan.ranks();
    compute.tiles = std::max(compute.tiles, tiles);
  }
  for (const double seconds : compute.lockstep) compute.lockstep_total += seconds;
  return compute;
}

}  // namespace ringserve
