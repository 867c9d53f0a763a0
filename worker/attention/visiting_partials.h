// Pass-Q's partials: what this rank computes for the queries that visit it, until it has gone back
// to their owner; and what others computed for this rank's own queries. Moves nothing itself.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include <ATen/ATen.h>

#include "worker/attention/partial.h"
#include "worker/attention/rank_plan.h"
#include "worker/attention/shards.h"
#include "worker/comm/communicator.h"

namespace ringserve {

class VisitingPartials {
 public:
  // `format` of the shards. Partials lie on `device`. `plan` outlives this. Without pass-Q there
  // are none.
  VisitingPartials(const RankPlan& plan, const ShardFormat& format, at::Device device);

  // What is accumulated for batch row `batch_row` (-1: all, which then share a layout) of the
  // queries of `owner`, another rank. Nothing was seen where it is asked for the first time. As
  // what follows, throws what LibTorch throws when there is no memory.
  Partial At(int owner, int batch_row);

  // Adds the transfers of step `index`. Where this rank did not compute all that it was to
  // (`complete` is false), NaN goes out: a partial that lacks something must not pass for an
  // answer.
  void AddSends(int index, bool complete, std::vector<SendOp>& sends);
  void AddReceives(int index, std::vector<RecvOp>& recvs);

  // After the exchange of step `index`: `own` (as RankTensors::out and lse) takes in what it
  // brought, in the plan's order.
  void Merge(int index, const std::vector<Partial>& own);

  // After that: lets go of what was sent and merged.
  void Release(int index);

 private:
  int64_t Bytes(int owner) const;
  Partial ViewOf(const at::Tensor& bytes, int owner, int batch_row) const;

  const RankPlan& plan_;
  const ShardFormat format_;            // of a partial: accumulated elements, head-major
  std::map<int, at::Tensor> computed_;  // by owner of the queries: its bytes
  std::vector<at::Tensor> returned_;    // of the present step, as Step::partial_recvs
  SpareMemory computed_memory_, returned_memory_;
};

}  // namespace ringserve
