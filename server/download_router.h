// A request's results on their way from its ranks: checks that every rank sends each byte of its
// shard once, and puts them where they belong in the caller's tensors. Not thread safe.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <vector>

#include <grpcpp/support/byte_buffer.h>

#include "absl/status/status.h"
#include "proto/chunk_sequence.h"
#include "server/chunk_queue.h"
#include "server/plan/plan.h"
#include "server/plan/shard_map.h"

namespace ringserve {

class DownloadRouter {
 public:
  explicit DownloadRouter(const Plan& plan);

  // Appends what a rank's message of chunks holds to messages(). INTERNAL: not a well-formed
  // message of chunks, or see ChunkCoverage.
  absl::Status Take(int rank, const grpc::ByteBuffer& message);

  // INTERNAL: bytes of the rank's shard have not come.
  absl::Status CheckComplete(int rank) const;

  // What is to be sent to the client.
  std::deque<OutgoingMessage>& messages() { return messages_; }

 private:
  struct Road {
    ShardMap map;
    uint64_t piece_bytes;  // cut at a time: bounds how many runs are held
  };

  std::map<v1::TensorId, Road> roads_;
  std::vector<ChunkCoverage> coverage_;  // by rank
  std::deque<OutgoingMessage> messages_;
};

}  // namespace ringserve
