// The shards that travel while the ring turns, K and V or with pass-Q the queries: a rank's own and
// those it received. Knows when the plan reads a shard for the last time, and uses the memory again
// after that, so that a ring never holds more than two shards beside its own. Moves nothing itself.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <utility>
#include <vector>

#include <ATen/ATen.h>

#include "worker/attention/rank_plan.h"
#include "worker/comm/communicator.h"

namespace ringserve {

// How a shard's bytes become views.
struct ShardFormat {
  at::ScalarType dtype = at::kFloat;
  bool head_major = true;  // memory [B, H, S, D], else [B, S, H, D]
  int64_t batch = 0, q_heads = 0, kv_heads = 0, head_dim = 0, value_dim = 0;
};

// The batch rows `batch_row` (-1: all, which then share a layout) of dense bytes that hold `rows`
// (per batch row; one entry: all the same): [B, heads, S, dim], last dim contiguous.
at::Tensor ViewOf(const at::Tensor& bytes, const ShardFormat& format,
                  const std::vector<int64_t>& rows, int64_t heads, int64_t dim, int batch_row);

// Likewise, of bytes that hold K's, then V's: [B, Hkv, S, D] and [B, Hkv, S, Dv].
std::pair<at::Tensor, at::Tensor> KeysAndValuesOf(const at::Tensor& bytes,
                                                  const ShardFormat& format,
                                                  const std::vector<int64_t>& rows, int batch_row);

// Rows over all batch rows.
int64_t TotalRows(const std::vector<int64_t>& rows, int64_t batch);

std::span<std::byte> BytesOf(const at::Tensor& memory);

// Memory that is used again. What is too small for the next use is too small to keep: the plan
// counts what is held at once.
class SpareMemory {
 public:
  explicit SpareMemory(at::Device device) : device_(device) {}
  at::Tensor Take(int64_t bytes);  // 1-D bytes. Throws what LibTorch throws.
  void Give(at::Tensor memory) { spare_.push_back(std::move(memory)); }

 private:
  const at::Device device_;
  std::vector<at::Tensor> spare_;
};

class TravellingShards {
 public:
  // `bytes` by owner. `own` is this rank's shard, 1-D bytes; others' will lie on its device. `plan`
  // outlives this.
  TravellingShards(const RankPlan& plan, std::vector<int64_t> bytes, const at::Tensor& own);

  // The transfers of step `index`: sends of shards held, receives into memory that is held from now
  // on. Throws what LibTorch throws when there is no memory.
  std::vector<SendOp> Sends(int index) const;
  std::vector<RecvOp> Receive(int index);

  // After step `index`, its exchange included: lets go of what no later step reads.
  void Release(int index);

  // The bytes of the shard of `owner`, held.
  const at::Tensor& At(int owner) const { return held_.at(owner); }

 private:
  const RankPlan& plan_;
  const std::vector<int64_t> bytes_;
  std::map<int, int> last_use_;     // by owner: the last step that reads its shard
  std::map<int, at::Tensor> held_;  // by owner: its bytes
  SpareMemory memory_;
};

}  // namespace ringserve
