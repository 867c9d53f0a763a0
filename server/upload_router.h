// A request's upload on its way to its ranks: checks that every byte comes once and in order, and
// cuts chunks into the ranks' shards. Not thread safe.
//
// Most tensors go to one place each. ALiBi slopes and sink logits go to every rank, and a bias that
// all batch rows share to one place for each batch row that has a layout of its own: what is queued
// of these is more than what came, so it waits until there is room for it.
#pragma once

#include <cstdint>
#include <deque>
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
  // What RouteCopies adds to the bytes that are held, at most.
  static constexpr uint64_t kCopiedBytes = 1 << 20;

  explicit UploadRouter(const Plan& plan);

  // Takes a client's message of chunks apart, into queue(), up to the first that goes to several
  // places: that and what comes after it waits. Returns the bytes of data that the message held.
  // INVALID_ARGUMENT, and nothing was queued: not a well-formed message of chunks; see
  // ChunkSequence.
  absl::StatusOr<uint64_t> Take(const grpc::ByteBuffer& message);

  // Nothing waits to be routed.
  bool routed() const { return waiting_.empty(); }
  // Bytes of data that do.
  uint64_t waiting_bytes() const { return waiting_bytes_; }

  // Puts a piece of what waits into the queues of all its places, and what comes after it as Take
  // does. Returns by how many bytes more is held now. Not after routed().
  uint64_t RouteCopies();

  bool complete() const { return sequence_.complete(); }
  absl::Status CheckComplete() const { return sequence_.CheckComplete(); }

  // What is to be sent to `rank`.
  ChunkQueue& queue(int rank) { return queues_[rank]; }

  // Drops what was not sent yet; returns how many bytes of data that were.
  uint64_t Clear();

 private:
  // Where a tensor goes: the shards of a layout; those of several, one behind the other; or, where
  // there is none, as it is to every rank.
  struct Road {
    struct Block {
      ShardMap map;
      std::vector<uint64_t> begins;  // by rank: where in its shard
    };
    std::vector<Block> blocks;
    uint64_t piece_bytes;  // cut at a time: bounds how many runs are held
    uint64_t places;       // of each byte
  };
  struct Waiting {
    DataChunk chunk;
    uint64_t routed = 0;
  };

  Road RoadOf(const Plan& plan, v1::TensorId tensor) const;
  void Push(const Road& road, const DataChunk& chunk);
  void RoutePlain();

  ChunkSequence sequence_;
  std::map<v1::TensorId, Road> roads_;
  std::deque<Waiting> waiting_;
  uint64_t waiting_bytes_ = 0;
  std::vector<ChunkQueue> queues_;  // by rank
};

}  // namespace ringserve
