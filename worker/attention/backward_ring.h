// The backward ring: K and V travel past this rank's queries once more, and the gradients of keys
// and values go back to their owners. Exact, as backward_block.h says; sums are fp32 (fp64 numbers:
// fp64), on the wire too, and rounded to the type of the numbers once, at the end.
//
// LibTorch only. Runs on the engine thread. LibTorch's exceptions end here.
#pragma once

#include <vector>

#include <ATen/ATen.h>

#include "absl/status/status.h"
#include "worker/attention/backward_plan.h"
#include "worker/attention/ring.h"
#include "worker/attention/shards.h"
#include "worker/comm/communicator.h"

namespace ringserve {

// This rank's tensors; entries by batch row as in RankTensors. `wide` is fp32, of fp64 numbers
// fp64. Nothing of the first part is changed; the caller allocates the second.
struct BackwardTensors {
  std::vector<at::Tensor> q;      // [B, Hq, Sq, D]
  at::Tensor kv;                  // 1-D bytes: this rank's K shard, then its V shard
  std::vector<at::Tensor> out;    // [B, Hq, Sq, Dv], type of q
  std::vector<at::Tensor> lse;    // [B, Hq, Sq], wide: as the forward pass gave it
  std::vector<at::Tensor> d_out;  // as out
  std::vector<at::Tensor> d_lse;  // as lse; empty: 0
  std::vector<at::Tensor> bias;   // as those of RankTensors
  at::Tensor alibi_slopes;
  at::Tensor sink_logits;

  std::vector<at::Tensor> d_q;  // as q
  at::Tensor d_kv;              // as kv: dK, then dV; 1-D bytes
  // [Hq], fp32 or wide: on rank 0, where there are sink logits, their gradient; else left alone.
  at::Tensor d_sink_logits;
};

// What a rank sends: K and V as in the forward pass; (D + Dv) wide numbers for each row and head of
// the shards of others that it has tiles of; and for sink logits, every rank but 0, Hq wide
// numbers. Allocates, beside the block's scratch, wide copies of d_q and d_kv where they are not
// wide, the shards of K and V that the plan holds at once, and at most three wide shards.
//
// options.lse_without_sinks: lse is without them, and d_lse the gradient of that. `progress` and
// `statistics` as for RunRing. Performs every exchange even when cancelled or when a tile failed:
// gradients of others' keys that this rank was to compute are NaN then. Statuses as RunRing.
absl::Status RunRingBackward(const BackwardPlan& plan, const ShardFormat& format,
                             const BackwardTensors& tensors, const RingOptions& options,
                             Communicator& communicator, RingProgress& progress,
                             RingStatistics& statistics);

}  // namespace ringserve
