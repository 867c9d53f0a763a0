// Tile cost: how long ranks compute, from the very tiles of their steps. Knows how the workers'
// kernel goes through a tile; what else a plan costs is in cost.h.
#pragma once

#include <cstdint>
#include <span>

#include "server/plan/cost.h"
#include "server/plan/plan.h"
#include "server/plan/tiles.h"

namespace ringserve {

// What a tile takes for one query head of one batch row, as a number of visible pairs that would
// take as long. The kernel multiplies blocks of queries with panels of keys, visible or not,
// touches each query's accumulator once per slice of keys, and lays keys out once for the `group`
// of query heads that share them. `tile` is normalized. O(1): of many blocks a sample is looked at.
double TileCost(const Band& tile, Kernel kernel, double group);

// Of every rank, as StepsFor says. Of `plan` this takes spec, options.rotate, layouts, bands,
// alignments and reach. `pace` as in MakeWorkload. O(tiles of all ranks).
ComputeSeconds ComputeOfTiles(const Plan& plan, std::span<const double> pace, const Speed& speed);

}  // namespace ringserve
