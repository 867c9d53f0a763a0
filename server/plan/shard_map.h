// Where the bytes of a tensor live once it is sharded: maps between offsets in the caller's dense
// order and offsets in each rank's dense shard. The proxy cuts chunks with it; pure integers.
//
// A shard keeps the tensor's layout: for every batch row and plane, the rank's rows of that batch
// row in the order of its segments. Where batch rows differ, a shard is one dense block per batch
// row, in order.
#pragma once

#include <cstdint>
#include <vector>

#include "proto/tensor_shape.h"
#include "server/plan/layout.h"
#include "server/plan/position_index.h"

namespace ringserve {

// `size` bytes at `tensor_offset` of the tensor are `size` bytes at `shard_offset` of the shard of
// `rank`.
struct ByteRun {
  int rank = 0;
  uint64_t tensor_offset = 0;
  uint64_t shard_offset = 0;
  uint64_t size = 0;

  friend bool operator==(const ByteRun&, const ByteRun&) = default;
};

// Immutable: any thread.
class ShardMap {
 public:
  // `layout` covers shape.rows positions, with one row or shape.batch rows.
  ShardMap(const TensorShape& shape, const SequenceLayout& layout);

  uint64_t ShardBytes(int rank) const;

  // The runs of tensor bytes [offset, offset + size), ascending by tensor offset, as long as they
  // can be: neighbours that continue each other in both tensor and shard are one run. The range
  // lies inside the tensor. Costs O(segments touched + log segments).
  std::vector<ByteRun> FromTensor(uint64_t offset, uint64_t size) const;

  // The runs of bytes [offset, offset + size) of the shard of `rank`, ascending by shard offset,
  // likewise.
  std::vector<ByteRun> FromShard(int rank, uint64_t offset, uint64_t size) const;

 private:
  struct Row {
    PositionIndex by_position;
    std::vector<std::vector<Placed>> by_rank;  // ascending local
    std::vector<int64_t> shard_rows;           // by rank
  };
  bool shared() const { return rows_.size() == 1; }
  const Row& row(int64_t batch_row) const { return shared() ? rows_[0] : rows_[batch_row]; }
  // First byte of `batch_row` in the shard of `rank`.
  uint64_t BlockOffset(int rank, int64_t batch_row) const;
  // The batch row that holds byte `offset` of the shard of `rank`.
  int64_t BatchRowAt(int rank, uint64_t offset) const;

  TensorShape shape_;
  std::vector<Row> rows_;
  std::vector<std::vector<uint64_t>>
      block_offsets_;  // [rank][batch row] and the total; only where rows differ
};

}  // namespace ringserve
