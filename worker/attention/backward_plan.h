// When what travels in the backward pass, by the plan of the forward pass: K and V travel as they
// did there. In step t a rank computes on the shard of the rank t below it; in step t + 1 the
// gradients of that shard's keys and values go straight to their owner, who so takes in those of
// the ranks above it one after the other, nearest first: the sums do not depend on who is faster.
// Refuses plans in which queries travel.
#pragma once

#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/attention/rank_plan.h"

namespace ringserve {

struct BackwardPlan {
  // Transfers of K and V shards; in step t the tiles of the shard of the rank t below this one.
  RankPlan shards;
  // By step: the owner to whom the gradients that the step before computed go, and the rank whose
  // gradients of this rank's own keys and values come. To and from one peer no step moves both a
  // shard and gradients.
  std::vector<std::optional<int>> gradients_to;
  std::vector<std::optional<int>> gradients_from;
};

// `forward` of the pass-KV ring or of all-gather; `readers`: the other ranks that have a tile of
// this rank's keys. INVALID_ARGUMENT: pass-Q, a reader that is no other rank, or a tile of a shard
// that is not there in its step.
absl::StatusOr<BackwardPlan> MakeBackwardPlan(const RankPlan& forward,
                                              const std::vector<int>& readers);

}  // namespace ringserve
