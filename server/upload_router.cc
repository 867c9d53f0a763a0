#include "server/upload_router.h"

#include <algorithm>

#include "proto/tensor_shape.h"
#include "proto/wire.h"
#include "server/shard_pieces.h"

namespace ringserve {

UploadRouter::UploadRouter(const Plan& plan) : queues_(plan.ranks()) {
  for (const v1::TensorId tensor : {v1::TENSOR_ID_Q, v1::TENSOR_ID_K, v1::TENSOR_ID_V}) {
    const TensorShape shape = ShapeOf(tensor, plan.spec);
    sequence_.Expect(tensor, shape.bytes());
    const SequenceLayout& layout = tensor == v1::TENSOR_ID_Q ? plan.q : plan.kv;
    roads_.emplace(tensor, Road{ShardMap(shape, layout), PieceBytes(shape)});
  }
}

absl::StatusOr<uint64_t> UploadRouter::Take(const grpc::ByteBuffer& message) {
  const absl::StatusOr<std::vector<DataChunk>> chunks = ParseChunks(message);
  if (!chunks.ok()) return chunks.status();
  for (const DataChunk& chunk : *chunks) {
    const absl::Status status = sequence_.Accept(chunk.tensor, chunk.offset, chunk.size);
    if (!status.ok()) return status;
  }
  uint64_t taken = 0;
  for (const DataChunk& chunk : *chunks) {
    const Road& road = roads_.at(chunk.tensor);
    ChunkReader reader(chunk);
    for (uint64_t done = 0; done < chunk.size;) {
      const uint64_t piece = std::min(road.piece_bytes, chunk.size - done);
      for (const ByteRun& run : road.map.FromTensor(chunk.offset + done, piece)) {
        queues_[run.rank].Push(chunk.tensor, run.shard_offset, run.size, reader);
      }
      done += piece;
    }
    taken += chunk.size;
  }
  return taken;
}

uint64_t UploadRouter::Clear() {
  uint64_t dropped = 0;
  for (ChunkQueue& queue : queues_) {
    dropped += queue.data_bytes();
    queue.Clear();
  }
  return dropped;
}

}  // namespace ringserve
