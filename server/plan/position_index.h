// Finds the segments of a layout by position: which ranks hold a range, and where in their shards.
// Immutable.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "server/plan/layout.h"

namespace ringserve {

// A segment with its place: position segment.begin is row `local` of the rank's shard of this batch
// row.
struct Placed {
  int rank = 0;
  Segment segment;
  int64_t local = 0;

  int64_t local_end() const { return local + segment.size(); }
  friend bool operator==(const Placed&, const Placed&) = default;
};

// The segments of one rank in its own order, placed.
std::vector<Placed> PlacedSegments(const RowLayout& row, int rank);

// One batch row's segments of all ranks, ascending by position. Building it costs O(n) where they
// are about as long as each other, else O(n log n).
class PositionIndex {
 public:
  explicit PositionIndex(const RowLayout& row);

  const std::vector<Placed>& segments() const { return segments_; }

  // Those that share a position with [begin, end), ascending; O(1) where segments are about as long
  // as each other, else O(log n). Empty where begin >= end.
  std::span<const Placed> Overlapping(int64_t begin, int64_t end) const;

 private:
  // The first segment that begins at `position` or later.
  int64_t FirstFrom(int64_t position) const;

  std::vector<Placed> segments_;
  // Positions in buckets of 2^shift_: by bucket, how many segments begin before it; and their
  // number.
  int shift_ = 0;
  std::vector<int64_t> before_;
};

}  // namespace ringserve
