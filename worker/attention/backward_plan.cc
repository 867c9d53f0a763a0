#include "worker/attention/backward_plan.h"

#include <algorithm>
#include <set>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace ringserve {
namespace {

// Every shard must be there when its tiles are computed.
absl::Status CheckShards(const RankPlan& plan) {
  std::set<int> held = {plan.rank};
  for (size_t step = 0; step < plan.steps.size(); ++step) {
    for (const Tile& tile : plan.steps[step].tiles) {
      if (held.count(tile.owner) != 0) continue;
      return absl::InvalidArgumentError(absl::StrCat("the backward pass needs the shard of rank ",
                                                     tile.owner, " in step ", step,
                                                     ", before it is there"));
    }
    for (const Transfer& recv : plan.steps[step].recvs) held.insert(recv.owner);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<BackwardPlan> MakeBackwardPlan(const RankPlan& forward,
                                              const std::vector<int>& readers) {
  if (forward.pass_q()) {
    return absl::InvalidArgumentError("the backward pass of rotate method pass-Q is not built");
  }
  const int ranks = static_cast<int>(forward.kv_rows.size());
  BackwardPlan plan;
  plan.shards = forward;
  std::vector<Step>& steps = plan.shards.steps;
  for (Step& step : steps) step.tiles.clear();
  steps.resize(std::max<size_t>(steps.size(), ranks + 1));
  plan.gradients_to.resize(steps.size());
  plan.gradients_from.resize(steps.size());
  for (const Step& step : forward.steps) {
    for (const Tile& tile : step.tiles) {
      const int distance = (forward.rank - tile.owner + ranks) % ranks;
      steps[distance].tiles.push_back(tile);
      if (distance > 0) plan.gradients_to[distance + 1] = tile.owner;
    }
  }
  for (const int reader : readers) {
    if (reader < 0 || reader >= ranks || reader == forward.rank) {
      return absl::InvalidArgumentError(absl::StrCat(
          "rank ", reader, " of ", ranks, " cannot read the keys of rank ", forward.rank));
    }
    plan.gradients_from[(reader - forward.rank + ranks) % ranks + 1] = reader;
  }
  const absl::Status status = CheckShards(plan.shards);
  if (!status.ok()) return status;
  return plan;
}

}  // namespace ringserve
