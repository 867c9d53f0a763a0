#include "server/plan/position_index.h"

#include <algorithm>
#include <numeric>

namespace ringserve {

namespace {

template <typename Visit>
void ForEachPlaced(const RowLayout& row, int rank, Visit visit) {
  int64_t local = 0;
  for (const Segment& segment : row[rank]) {
    visit(Placed{rank, segment, local});
    local += segment.size();
  }
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
  // About one segment to a bucket, so that nothing is left to compare.
  while (length >> shift_ > size) ++shift_;
  before_.resize((length >> shift_) + 2);
  for (const std::vector<Segment>& segments : row) {
    for (const Segment& segment : segments) ++before_[(segment.begin >> shift_) + 1];
  }
  std::partial_sum(before_.begin(), before_.end(), before_.begin());
  std::vector<int64_t> next(before_.begin(), before_.end() - 1);
  segments_.resize(size);
  for (int rank = 0; rank < static_cast<int>(row.size()); ++rank) {
    ForEachPlaced(row, rank, [&](const Placed& placed) {
      segments_[next[placed.segment.begin >> shift_]++] = placed;
    });
  }
  for (size_t bucket = 0; bucket + 1 < before_.size(); ++bucket) {
    if (before_[bucket + 1] - before_[bucket] < 2) continue;
    std::sort(segments_.begin() + before_[bucket], segments_.begin() + before_[bucket + 1],
              [](const Placed& a, const Placed& b) { return a.segment.begin < b.segment.begin; });
  }
}

int64_t PositionIndex::FirstFrom(int64_t position) const {
  const int64_t buckets = static_cast<int64_t>(before_.size()) - 1;
  const int64_t bucket = std::max<int64_t>(0, position) >> shift_;
  if (bucket >= buckets) return before_.back();
  const auto begin = segments_.begin() + before_[bucket];
  const auto end = segments_.begin() + before_[bucket + 1];
  return std::partition_point(
             begin, end,
             [position](const Placed& placed) { return placed.segment.begin < position; }) -
         segments_.begin();
}

std::span<const Placed> PositionIndex::Overlapping(int64_t begin, int64_t end) const {
  if (begin >= end) return {};
  int64_t first = FirstFrom(begin);
  if (first > 0 && segments_[first - 1].segment.end > begin) --first;
  return {segments_.begin() + first, segments_.begin() + std::max(first, FirstFrom(end))};
}

}  // namespace ringserve
