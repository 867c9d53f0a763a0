#include "server/upload_router.h"

#include <algorithm>
#include <utility>

#include "proto/tensor_shape.h"
#include "proto/wire.h"
#include "server/shard_pieces.h"

namespace ringserve {
UploadRouter::UploadRouter(const Plan& plan) : queues_(plan.ranks()) {
  for (const v1::TensorId tensor : UploadsOf(plan.spec, plan.pass)) {
    sequence_.Expect(tensor, ShapeOf(tensor, plan.spec).bytes());
    roads_.emplace(tensor, RoadOf(plan, tensor));
  }
}

UploadRouter::Road UploadRouter::RoadOf(const Plan& plan, v1::TensorId tensor) const {
  const TensorShape shape = ShapeOf(tensor, plan.spec);
  const size_t ranks = queues_.size();
  if (IsPerHead(tensor)) return {{}, PieceBytes(shape), ranks};
  const SequenceLayout& layout = IsOfKeys(tensor) ? plan.kv : plan.q;
  const std::vector<uint64_t> from_the_start(ranks);
  Road road{{}, PieceBytes(shape), 1};
  if (layout.shared() || shape.batch == plan.spec.batch()) {
    road.blocks.push_back({ShardMap(shape, layout), from_the_start});
    return road;
  }
  std::vector<uint64_t> begins = from_the_start;
  for (const RowLayout& row : layout.rows) {
    road.blocks.push_back({ShardMap(shape, SequenceLayout{{row}}), begins});
    for (size_t rank = 0; rank < ranks; ++rank)
      begins[rank] += road.blocks.back().map.ShardBytes(static_cast<int>(rank));
  }
  road.places = road.blocks.size();
  return road;
}

absl::StatusOr<uint64_t> UploadRouter::Take(const grpc::ByteBuffer& message) {
  absl::StatusOr<std::vector<DataChunk>> chunks = ParseChunks(message);
  if (!chunks.ok()) return chunks.status();
  for (const DataChunk& chunk : *chunks) {
    const absl::Status status = sequence_.Accept(chunk.tensor, chunk.offset, chunk.size);
    if (!status.ok()) return status;
  }
  uint64_t taken = 0;
  for (DataChunk& chunk : *chunks) {
    taken += chunk.size;
    waiting_.push_back({std::move(chunk)});
  }
  waiting_bytes_ += taken;
  RoutePlain();
  return taken;
}

void UploadRouter::RoutePlain() {
  while (!waiting_.empty()) {
    const DataChunk& chunk = waiting_.front().chunk;
    const Road& road = roads_.at(chunk.tensor);
    if (road.places > 1) return;
    Push(road, chunk);
    waiting_bytes_ -= chunk.size;
    waiting_.pop_front();
  }
}

uint64_t UploadRouter::RouteCopies() {
  Waiting& next = waiting_.front();
  const Road& road = roads_.at(next.chunk.tensor);
  const uint64_t size =
      std::min(std::max<uint64_t>(1, kCopiedBytes / road.places), next.chunk.size - next.routed);
  Push(road, next.chunk.Sub(next.routed, size));
  next.routed += size;
  waiting_bytes_ -= size;
  if (next.routed == next.chunk.size) waiting_.pop_front();
  RoutePlain();
  return size * (road.places - 1);
}

void UploadRouter::Push(const Road& road, const DataChunk& chunk) {
  if (road.blocks.empty()) {
    for (ChunkQueue& queue : queues_) {
      ChunkReader reader(chunk);
      queue.Push(chunk.tensor, chunk.offset, chunk.size, reader);
    }
    return;
  }
  for (const Road::Block& block : road.blocks) {
    ChunkReader reader(chunk);
    for (uint64_t done = 0; done < chunk.size;) {
      const uint64_t piece = std::min(road.piece_bytes, chunk.size - done);
      for (const ByteRun& run : block.map.FromTensor(chunk.offset + done, piece)) {
        queues_[run.rank].Push(chunk.tensor, block.begins[run.rank] + run.shard_offset, run.size,
                               reader);
      }
      done += piece;
    }
  }
}

uint64_t UploadRouter::Clear() {
  uint64_t dropped = std::exchange(waiting_bytes_, 0);
  waiting_.clear();
  for (ChunkQueue& queue : queues_) {
    dropped += queue.data_bytes();
    queue.Clear();
  }
  return dropped;
}

}  // namespace ringserve
