#include "server/plan/shard_map.h"

#include <algorithm>
#include <cassert>

namespace ringserve {
namespace {

void Append(std::vector<ByteRun>& runs, const ByteRun& next) {
  if (!runs.empty()) {
    ByteRun& last = runs.back();
    if (last.rank == next.rank && last.tensor_offset + last.size == next.tensor_offset &&
        last.shard_offset + last.size == next.shard_offset) {
      last.size += next.size;
      return;
    }
  }
  runs.push_back(next);
}

}  // namespace

ShardMap::ShardMap(const TensorShape& shape, const SequenceLayout& layout) : shape_(shape) {
  assert(layout.shared() || static_cast<int64_t>(layout.rows.size()) == shape.batch);
  for (const RowLayout& row_layout : layout.rows) {
    Row row{PositionIndex(row_layout), {}, {}};
    for (int rank = 0; rank < layout.ranks(); ++rank) {
      row.by_rank.push_back(PlacedSegments(row_layout, rank));
      row.shard_rows.push_back(row.by_rank[rank].empty() ? 0
                                                         : row.by_rank[rank].back().local_end());
    }
    rows_.push_back(std::move(row));
  }
  if (shared()) return;
  block_offsets_.resize(layout.ranks());
  for (int rank = 0; rank < layout.ranks(); ++rank) {
    uint64_t offset = 0;
    for (const Row& row : rows_) {
      block_offsets_[rank].push_back(offset);
      offset +=
          static_cast<uint64_t>(shape_.planes_per_batch) * row.shard_rows[rank] * shape_.row_bytes;
    }
    block_offsets_[rank].push_back(offset);
  }
}

uint64_t ShardMap::BlockOffset(int rank, int64_t batch_row) const {
  if (!shared()) return block_offsets_[rank][batch_row];
  return static_cast<uint64_t>(batch_row) * shape_.planes_per_batch * rows_[0].shard_rows[rank] *
         shape_.row_bytes;
}

uint64_t ShardMap::ShardBytes(int rank) const { return BlockOffset(rank, shape_.batch); }

int64_t ShardMap::BatchRowAt(int rank, uint64_t offset) const {
  if (shared()) return static_cast<int64_t>(offset / BlockOffset(rank, 1));
  const std::vector<uint64_t>& offsets = block_offsets_[rank];
  return std::upper_bound(offsets.begin(), offsets.end(), offset) - offsets.begin() - 1;
}

std::vector<ByteRun> ShardMap::FromTensor(uint64_t offset, uint64_t size) const {
  assert(offset <= shape_.bytes() && size <= shape_.bytes() - offset);
  std::vector<ByteRun> runs;
  const uint64_t row_bytes = shape_.row_bytes;
  const uint64_t plane_bytes = row_bytes * shape_.rows;
  const uint64_t end = offset + size;
  while (offset < end) {
    const int64_t plane = static_cast<int64_t>(offset / plane_bytes);
    const uint64_t plane_begin = plane * plane_bytes;
    const uint64_t stop = std::min(end, plane_begin + plane_bytes);
    const int64_t batch_row = plane / shape_.planes_per_batch;
    const int64_t head = plane % shape_.planes_per_batch;
    const Row& held = row(batch_row);
    const int64_t first_row = static_cast<int64_t>((offset - plane_begin) / row_bytes);
    for (const Placed& placed : held.by_position.Overlapping(first_row, shape_.rows)) {
      if (offset == stop) break;
      const uint64_t segment_end = plane_begin + placed.segment.end * row_bytes;
      const uint64_t into_segment = offset - (plane_begin + placed.segment.begin * row_bytes);
      const uint64_t shard_row = head * held.shard_rows[placed.rank] + placed.local;
      const ByteRun run{placed.rank, offset,
                        BlockOffset(placed.rank, batch_row) + shard_row * row_bytes + into_segment,
                        std::min(stop, segment_end) - offset};
      Append(runs, run);
      offset += run.size;
    }
  }
  return runs;
}

std::vector<ByteRun> ShardMap::FromShard(int rank, uint64_t offset, uint64_t size) const {
  assert(offset <= ShardBytes(rank) && size <= ShardBytes(rank) - offset);
  std::vector<ByteRun> runs;
  const uint64_t row_bytes = shape_.row_bytes;
  const uint64_t end = offset + size;
  while (offset < end) {
    const int64_t batch_row = BatchRowAt(rank, offset);
    const Row& held = row(batch_row);
    const uint64_t plane_bytes = row_bytes * held.shard_rows[rank];
    const uint64_t block_begin = BlockOffset(rank, batch_row);
    const uint64_t head = (offset - block_begin) / plane_bytes;
    const uint64_t plane_begin = block_begin + head * plane_bytes;
    const uint64_t stop = std::min(end, plane_begin + plane_bytes);
    const int64_t first_row = static_cast<int64_t>((offset - plane_begin) / row_bytes);
    const std::vector<Placed>& segments = held.by_rank[rank];
    auto placed = std::partition_point(
        segments.begin(), segments.end(),
        [first_row](const Placed& segment) { return segment.local_end() <= first_row; });
    const uint64_t tensor_plane = batch_row * shape_.planes_per_batch + head;
    for (; offset < stop; ++placed) {
      const uint64_t segment_end = plane_begin + placed->local_end() * row_bytes;
      const uint64_t into_segment = offset - (plane_begin + placed->local * row_bytes);
      const uint64_t tensor_row = tensor_plane * shape_.rows + placed->segment.begin;
      const ByteRun run{rank, tensor_row * row_bytes + into_segment, offset,
                        std::min(stop, segment_end) - offset};
      Append(runs, run);
      offset += run.size;
    }
  }
  return runs;
}

}  // namespace ringserve
