// The K and V shards that a rank holds while the ring turns: its own and those it received. Knows
// when the plan reads a shard for the last time, and uses the memory again after that, so that a
// ring never holds more than two shards beside its own. Moves nothing itself.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include <ATen/ATen.h>

#include "worker/attention/rank_plan.h"
#include "worker/comm/communicator.h"

namespace ringserve {

// How a KV shard's bytes become views.
struct KvFormat {
  at::ScalarType dtype = at::kFloat;
  bool head_major = true;  // memory [B, H, S, D], else [B, S, H, D]
  int64_t batch = 0, kv_heads = 0, head_dim = 0, value_dim = 0;
};

class KvShards {
 public:
  // [B, Hkv, S, D] and [B, Hkv, S, Dv], last dim contiguous.
  struct Views {
    at::Tensor k, v;
  };

  // `own` as RankTensors::kv. `plan` outlives this.
  KvShards(const RankPlan& plan, const KvFormat& format, const at::Tensor& own);

  // The transfers of step `index`: sends of shards held, receives into memory that is held from now
  // on. Throws what LibTorch throws when there is no memory.
  std::vector<SendOp> Sends(int index) const;
  std::vector<RecvOp> Receive(int index);

  // After step `index`, its exchange included: lets go of what no later step reads.
  void Release(int index);

  // Batch row `batch_row` (-1: all, which then share a layout) of the shard of `owner`, held.
  Views At(int owner, int batch_row) const;

 private:
  int64_t Bytes(int owner) const;
  at::Tensor Memory(int64_t bytes);

  const RankPlan& plan_;
  const KvFormat format_;
  std::map<int, int> last_use_;       // by owner: the last step that reads its shard
  std::map<int, at::Tensor> held_;    // by owner: its bytes
  std::vector<at::Tensor> reusable_;  // memory of shards let go of
};

}  // namespace ringserve
