// The ring loop: carries K and V shards past this rank's queries, or (pass-Q) queries past its K
// and V, and accumulates exact attention. Source of the algorithm: Liu et al., "Ring Attention with
// Blockwise Transformers" (2023); the merge of partials is the online softmax of Milakov &
// Gimelshein (2018).
//
// LibTorch only. Runs on the engine thread. LibTorch's exceptions end here.
#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <vector>

#include <ATen/ATen.h>

#include "absl/status/status.h"
#include "worker/attention/cpu_block.h"
#include "worker/attention/rank_plan.h"
#include "worker/attention/shards.h"
#include "worker/comm/communicator.h"

namespace ringserve {

// This rank's tensors, all on one device. Where all batch rows share a layout there is one entry
// with the whole batch; else one entry per batch row, each with batch 1. All views are [B, H, S, D]
// with a contiguous last dim, whatever the memory order (a [B, S, H, D] shard comes as a transposed
// view). Outputs are allocated by the caller.
struct RankTensors {
  std::vector<at::Tensor> q;  // changed in place where the scale is not positive
  at::Tensor q_bytes;         // 1-D bytes: the memory of q, dense in wire order
  at::Tensor kv;  // 1-D bytes: this rank's K shard, then its V shard, dense in wire order
  std::vector<at::Tensor> out;  // dtype of q; [B, Hq, Sq, Dv]
  std::vector<at::Tensor> lse;  // fp32 (f64: fp64), contiguous [B, Hq, Sq]
  // Added to the scaled scores: the bias of this rank's queries and of every key of the request, as
  // q but [B or 1, Hq or 1, Sq, Tk]; of bool or of bytes it hides where it is 0. -inf hides, too.
  std::vector<at::Tensor> bias;  // empty: none
  at::Tensor alibi_slopes;       // undefined, or fp32 [Hq]: -slope[h] |p - key| is added
  // One more score of each row, whose value is 0; -inf: none.
  at::Tensor sink_logits;  // undefined, or fp32 [Hq]
};

struct RingOptions {
  double scale = 1;
  const Block* block = &CpuBlock();  // of the device where the tensors lie
  bool lse_without_sinks = false;    // `out` is with them in any case
  // How long the ring may wait for one step's exchange, beyond the time that it has run so far: a
  // neighbour that computes as long again as this rank did is no fault.
  std::chrono::milliseconds exchange_deadline{30'000};
  // Called at the beginning of each step, cancelled or not, before its transfers are posted.
  std::function<void(int step)> on_step;  // may be empty
};

// Shared with other threads while the loop runs.
struct RingProgress {
  std::atomic<bool> cancelled{false};   // in: skip the arithmetic, perform every exchange
  std::atomic<uint64_t> tiles_done{0};  // out
  std::atomic<bool> computing{false};   // out
};

struct RingStatistics {
  double compute_seconds = 0;
  double exchange_wait_seconds = 0;
  uint64_t bytes_sent = 0;      // as the communicator counted them
  uint64_t bytes_received = 0;  // likewise
  uint64_t tiles = 0;
};

// Bytes that RunRing allocates beside its arguments (accumulators, receive buffers, padding): never
// more than what the planner reserved for the rank. (The block's scratch, on a processor at most
// 3 MiB for each of LibTorch's threads, is the worker's own: it runs one kernel at a time.)
//
// Performs every exchange of the plan even when cancelled or when a tile failed; with pass-Q,
// others' rows that this rank was to work on are NaN then.
//
// ABORTED: cancelled; every exchange was done.
//
// INTERNAL: LibTorch threw; every exchange was done. Where it had no memory to receive a shard, the
// communicator was ended instead.
//
// Otherwise the communicator's error, which ended it: buffers are no longer touched.
absl::Status RunRing(const RankPlan& plan, const ShardFormat& format, const RankTensors& tensors,
                     const RingOptions& options, Communicator& communicator, RingProgress& progress,
                     RingStatistics& statistics);

}  // namespace ringserve
