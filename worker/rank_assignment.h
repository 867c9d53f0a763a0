// What an Assignment asks of a rank, in the ring loops' own terms. A value.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "proto/chunk_sequence.h"
#include "proto/tensor_shape.h"
#include "ringserve/v1/shard.pb.h"
#include "worker/attention/backward_plan.h"
#include "worker/attention/rank_plan.h"

namespace ringserve {

struct RankAssignment {
  std::string request_id;
  v1::AttentionSpec spec;
  Pass pass;
  bool return_lse = false;
  bool lse_without_sinks = false;
  std::vector<int64_t> q_rows;  // per batch row; one entry: all the same
  // `members` is empty until Start (see BindMembers). Backward: BackwardPlan.shards, and beside it
  // the rest of a BackwardPlan.
  RankPlan plan;
  std::vector<std::optional<int>> gradients_to, gradients_from;
  uint64_t q_bytes = 0, k_bytes = 0, v_bytes = 0, out_bytes = 0,
           lse_bytes = 0;                    // this rank's shards, and those of their gradients
  std::vector<uint64_t> bias_blocks;         // bytes: one block, or one for each entry of q_rows
  uint64_t slope_bytes = 0, sink_bytes = 0;  // 0: there are none
  uint64_t peak_bytes = 0;

  uint64_t bias_bytes() const;                  // of all blocks
  uint64_t BytesOf(v1::TensorId tensor) const;  // of this rank's shard of it

  // The tensors whose shards this rank answers, which may be empty. What is per head, rank 0 does.
  std::vector<v1::TensorId> Results() const;

  // The tensors of whose shards it has memory: what it receives, and what it works out.
  std::vector<v1::TensorId> Held() const;

  // The tensors that this rank receives, with their bytes.
  ChunkSequence ExpectedInput() const;
};

}  // namespace ringserve
