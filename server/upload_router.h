// A request's upload on its way to its ranks: checks that every byte comes once and in order, and
// cuts chunks into the ranks' shards. Not thread safe.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include <grpcpp/support/byte_buffer.h>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "proto/chunk_sequence.h"
#include "server/chunk_queue.h"
#include "server/plan/plan.h"
#include "server/plan/shard_map.h"

namespace ringserve {

class UploadRouter {
 public:
  explicit UploadRouter(const Plan& plan);

  // Takes a client's message of chunks apart, into queue(); returns the bytes of data it held.
  // INVALID_ARGUMENT, and nothing was queued: not a well-formed message of chunks; see
  // ChunkSequence.
  absl::StatusOr<uint64_t> Take(const grpc::ByteBuffer& message);

  bool complete() const { return sequence_.complete(); }
  absl::Status CheckComplete() const { return sequence_.CheckComplete(); }

  // What is to be sent to `rank`.
  ChunkQueue& queue(int rank) { return queues_[rank]; }

  // Drops what was not sent yet; returns how many bytes of data that were.
  uint64_t Clear();

 private:
  struct Road {
    ShardMap map;
    uint64_t piece_bytes;  // cut at a time: bounds how many runs are held
  };

  ChunkSequence sequence_;
  std::map<v1::TensorId, Road> roads_;
  std::vector<ChunkQueue> queues_;  // by rank
};

}  // namespace ringserve
