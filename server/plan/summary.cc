#include "server/plan/plan.h"

#include "proto/band.h"
#include "server/plan/memory.h"

namespace ringserve {
namespace {

// At 16 bytes each, well within one message.
constexpr int64_t kMostShownSegments = 100'000;

uint64_t WorkOf(const v1::Tile& tile, int64_t batch) {
  Band band{.q_begin = 0,
            .q_end = tile.q_end() - tile.q_begin(),
            .k_begin = 0,
            .k_end = tile.k_end() - tile.k_begin()};
  if (tile.has_lo()) band.lo = tile.lo();
  if (tile.has_hi()) band.hi = tile.hi();
  return Area(band) * (tile.batch_row() < 0 ? batch : 1);
}

}  // namespace

v1::PlanSummary Summarize(const Plan& plan) {
  v1::PlanSummary summary;
  summary.set_balancer(plan.options.balancer());
  summary.set_rotate(plan.options.rotate());
  summary.set_workers(plan.ranks());
  if (LayoutSize(plan.q) + LayoutSize(plan.kv) <= kMostShownSegments) {
    *summary.mutable_layout()->mutable_q() = ToProto(plan.q);
    *summary.mutable_layout()->mutable_kv() = ToProto(plan.kv);
  }
  for (uint64_t work : plan.work) summary.add_work(work);
  for (uint64_t bytes : plan.bytes_sent) summary.add_bytes(bytes);
  for (uint64_t bytes : plan.peak_bytes) summary.add_peak_bytes(bytes);
  summary.set_imbalance(plan.imbalance);
  summary.set_imbalance_total(plan.imbalance_total);
  summary.set_imbalance_is_bound(plan.imbalance_is_bound);
  summary.set_estimated_seconds(plan.estimated_seconds);
  summary.set_reason(plan.reason);
  return summary;
}

std::vector<v1::RankSteps> SummarizeSteps(const Plan& plan) {
  const bool backward = plan.pass.backward;
  const bool gather = plan.options.rotate() == v1::ROTATE_METHOD_ALL_GATHER && !backward;
  const bool pass_q = plan.options.rotate() == v1::ROTATE_METHOD_PASS_Q;
  const std::vector<uint64_t> shard_bytes =
      pass_q ? QShardBytes(plan.spec, plan.q) : KvShardBytes(plan.spec, plan.kv);
  const std::vector<uint64_t> partial_bytes =
      backward ? GradientBytes(plan.spec, plan.kv) : PartialBytes(plan.spec, plan.q);
  std::vector<v1::RankSteps> ranks;
  for (int rank = 0; rank < plan.ranks(); ++rank) {
    v1::RankSteps& summary = ranks.emplace_back();
    int t = 0;
    for (const v1::Step& step : backward ? BackwardStepsFor(plan, rank) : StepsFor(plan, rank)) {
      v1::RankSteps::Step* row = summary.add_steps();
      const int visitor = (rank - t % plan.ranks() + plan.ranks()) % plan.ranks();
      row->set_kv_rank(gather ? -1 : pass_q ? rank : visitor);
      row->set_q_rank(pass_q ? visitor : rank);
      uint64_t work = 0;
      uint64_t bytes = 0;
      for (const v1::Tile& tile : step.tiles()) work += WorkOf(tile, plan.spec.batch());
      for (const v1::Transfer& send : step.sends())
        bytes = SaturatingAdd(bytes, shard_bytes[send.owner()]);
      for (const int owner : step.partial_sends())
        bytes = SaturatingAdd(bytes, partial_bytes[owner]);
      row->set_work(work);
      row->set_tiles(step.tiles_size());
      row->set_bytes_sent(bytes);
      ++t;
    }
    if (!backward || SinkGradientBytes(plan.spec) == 0) continue;
    v1::RankSteps::Step* last = summary.add_steps();
    last->set_kv_rank(rank);
    last->set_q_rank(rank);
    last->set_bytes_sent(rank == 0 ? 0 : SinkGradientBytes(plan.spec));
  }
  return ranks;
}

}  // namespace ringserve
