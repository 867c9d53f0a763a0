// What an Assignment asks of this rank, checked and in the ring loop's own terms. Pure: no memory
// is taken here, no thread is started. Refuses whatever would read or write outside of the shards.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "proto/chunk_sequence.h"
#include "ringserve/v1/shard.pb.h"
#include "worker/attention/rank_plan.h"

namespace ringserve {

struct RankAssignment {
  std::string request_id;
  v1::AttentionSpec spec;
  bool return_lse = false;
  bool lse_without_sinks = false;
  std::vector<int64_t> q_rows;  // per batch row; one entry: all the same
  RankPlan plan;                // `members` is empty until Start (see BindMembers)
  uint64_t q_bytes = 0, k_bytes = 0, v_bytes = 0, out_bytes = 0,
           lse_bytes = 0;                    // this rank's shards
  std::vector<uint64_t> bias_blocks;         // bytes: one block, or one for each entry of q_rows
  uint64_t slope_bytes = 0, sink_bytes = 0;  // 0: there are none
  uint64_t peak_bytes = 0;

  uint64_t bias_bytes() const;  // of all blocks

  // The tensors that this rank receives, with their bytes.
  ChunkSequence ExpectedInput() const;
};

// INVALID_ARGUMENT, naming the field: anything that contradicts itself or `spec`; a tile or a
// transfer of a shard that this rank does not hold at that step; tiles outside of the shards; a
// partial that goes before its last tile or never, or comes twice; shards that exceed peak_bytes.
absl::StatusOr<RankAssignment> ParseAssignment(const v1::Assignment& assignment);

// Fills plan.members from `start`. INVALID_ARGUMENT: not one member per rank, a member twice or
// outside of [0, epoch_members), or this rank is not bound to `own_index`.
absl::Status BindMembers(const v1::Start& start, int own_index, int epoch_members, RankPlan& plan);

}  // namespace ringserve
