#include "server/download_router.h"

#include <algorithm>
#include <string>

#include "absl/strings/str_cat.h"
#include "proto/tensor_shape.h"
#include "proto/wire.h"
#include "server/shard_pieces.h"

namespace ringserve {
namespace {

// Which rank sends which rows: what is per head comes from rank 0 alone.
ShardMap MapOf(const Plan& plan, v1::TensorId tensor, const TensorShape& shape) {
  if (!IsPerHead(tensor)) return ShardMap(shape, IsOfKeys(tensor) ? plan.kv : plan.q);
  RowLayout whole(plan.ranks());
  whole[0] = {{0, shape.rows}};
  return ShardMap(shape, SequenceLayout{{whole}});
}

}  // namespace

DownloadRouter::DownloadRouter(const Plan& plan) : coverage_(plan.ranks()) {
  for (const v1::TensorId tensor : ResultsOf(plan.spec, plan.pass, plan.options.return_lse())) {
    const TensorShape shape = ShapeOf(tensor, plan.spec);
    const Road& road =
        roads_.emplace(tensor, Road{MapOf(plan, tensor, shape), PieceBytes(shape)}).first->second;
    for (int rank = 0; rank < plan.ranks(); ++rank) {
      const uint64_t bytes = road.map.ShardBytes(rank);
      if (bytes > 0) coverage_[rank].Expect(tensor, bytes);
    }
  }
}

absl::Status DownloadRouter::Take(int rank, const grpc::ByteBuffer& message) {
  const absl::StatusOr<std::vector<DataChunk>> chunks = ParseChunks(message);
  if (!chunks.ok()) return absl::InternalError(std::string(chunks.status().message()));
  ChunkQueue queue;
  for (const DataChunk& chunk : *chunks) {
    absl::Status status = coverage_[rank].Accept(chunk.tensor, chunk.offset, chunk.size);
    if (!status.ok()) return status;
    const Road& road = roads_.at(chunk.tensor);
    ChunkReader reader(chunk);
    for (uint64_t done = 0; done < chunk.size;) {
      const uint64_t piece = std::min(road.piece_bytes, chunk.size - done);
      for (const ByteRun& run : road.map.FromShard(rank, chunk.offset + done, piece)) {
        queue.Push(chunk.tensor, run.tensor_offset, run.size, reader);
      }
      done += piece;
      // Short runs take more room as chunks than as a message.
      if (done < chunk.size) {
        while (!queue.empty()) messages_.push_back(queue.Pop());
      }
    }
  }
  while (!queue.empty()) messages_.push_back(queue.Pop());
  return absl::OkStatus();
}

absl::Status DownloadRouter::CheckComplete(int rank) const {
  if (coverage_[rank].complete()) return absl::OkStatus();
  return absl::InternalError(absl::StrCat("rank ", rank, " is done but rows of it are missing"));
}

}  // namespace ringserve
