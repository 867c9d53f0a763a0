#include "server/plan/position_index.h"

#include <algorithm>

namespace ringserve {

std::vector<Placed> PlacedSegments(const RowLayout& row, int rank) {
  std::vector<Placed> placed;
  int64_t local = 0;
  for (const Segment& segment : row[rank]) {
    placed.push_back({rank, segment, local});
    local += segment.size();
  }
  return placed;
}

PositionIndex::PositionIndex(const RowLayout& row) {
  for (int rank = 0; rank < static_cast<int>(row.size()); ++rank) {
    const std::vector<Placed> placed = PlacedSegments(row, rank);
    segments_.insert(segments_.end(), placed.begin(), placed.end());
  }
  std::sort(segments_.begin(), segments_.end(),
            [](const Placed& a, const Placed& b) { return a.segment.begin < b.segment.begin; });
}

std::span<const Placed> PositionIndex::Overlapping(int64_t begin, int64_t end) const {
  if (begin >= end) return {};
  const auto first =
      std::partition_point(segments_.begin(), segments_.end(),
                           [begin](const Placed& placed) { return placed.segment.end <= begin; });
  const auto last = std::partition_point(
      first, segments_.end(), [end](const Placed& placed) { return placed.segment.begin < end; });
  return {first, last};
}

}  // namespace ringserve
