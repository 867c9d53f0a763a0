// Do bands share a pair? Pure integers; knows no masks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "proto/band.h"

namespace ringserve {

// Two bands, by their places in a list, first < second, and a pair that both show.
struct BandOverlap {
  size_t first = 0, second = 0;
  int64_t q = 0, k = 0;
};

// Some two of `bands` that overlap; nullopt: they are disjoint. Bands may be empty, and come in any
// order. O(n log n): a sweep over the queries that keeps the bands in the order of their keys
// (Shamos & Hoey, "Geometric intersection problems", 1976).
std::optional<BandOverlap> FindOverlap(std::span<const Band> bands);

}  // namespace ringserve
