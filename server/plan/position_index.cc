#include "server/plan/position_index.h"

#include <algorithm>
#include <utility>

namespace ringserve {

namespace {

constexpr int64_t kWorthCounting = 4'096;
constexpr int64_t kMostPositionsPerSegment = 8;

template <typename Visit>
void ForEachPlaced(const RowLayout& row, int rank, Visit visit) {
  int64_t local = 0;
  for (const Segment& segment : row[rank]) {
    visit(Placed{rank, segment, local});
    local += segment.size();
  }
}

// Ascending, where the segments of all ranks begin at `begins` (1: one does).
std::vector<Placed> Counted(const RowLayout& row, std::vector<int32_t> begins, int64_t size) {
  int32_t before = 0;
  for (int32_t& begin : begins) before += std::exchange(begin, before);
  std::vector<Placed> sorted(size);
  for (int rank = 0; rank < static_cast<int>(row.size()); ++rank) {
    ForEachPlaced(row, rank,
                  [&](const Placed& placed) { sorted[begins[placed.segment.begin]] = placed; });
  }
  return sorted;
}

}  // namespace

std::vector<Placed> PlacedSegments(const RowLayout& row, int rank) {
  std::vector<Placed> placed;
  placed.reserve(row[rank].size());
  ForEachPlaced(row, rank, [&](const Placed& segment) { placed.push_back(segment); });
  return placed;
}

PositionIndex::PositionIndex(const RowLayout& row) {
  int64_t size = 0, length = 0;
  for (const std::vector<Segment>& segments : row) {
    size += static_cast<int64_t>(segments.size());
    for (const Segment& segment : segments) length = std::max(length, segment.end);
  }
  // Very many segments are very short ones: then a table by position is several times as fast as
  // comparing.
  if (size >= kWorthCounting && length <= kMostPositionsPerSegment * size) {
    std::vector<int32_t> begins(length);
    for (const std::vector<Segment>& segments : row) {
      for (const Segment& segment : segments) begins[segment.begin] = 1;
    }
    segments_ = Counted(row, std::move(begins), size);
    return;
  }
  segments_.reserve(size);
  for (int rank = 0; rank < static_cast<int>(row.size()); ++rank)
    ForEachPlaced(row, rank, [&](const Placed& placed) { segments_.push_back(placed); });
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
