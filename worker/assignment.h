// What an Assignment asks of this rank, checked and in the ring loop's own terms. Pure: no memory
// is taken here, no thread is started. Refuses whatever would read or write outside of the shards.
#pragma once

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "ringserve/v1/shard.pb.h"
#include "worker/attention/rank_plan.h"
#include "worker/rank_assignment.h"

namespace ringserve {

// INVALID_ARGUMENT, naming the field: anything that contradicts itself or `spec`; a tile or a
// transfer of a shard that this rank does not hold at that step; tiles outside of the shards; a
// partial that goes before its last tile or never, or comes twice; shards that exceed peak_bytes;
// what MakeBackwardPlan refuses.
absl::StatusOr<RankAssignment> ParseAssignment(const v1::Assignment& assignment);

// Fills plan.members from `start`. INVALID_ARGUMENT: not one member per rank, a member twice or
// outside of [0, epoch_members), or this rank is not bound to `own_index`.
absl::Status BindMembers(const v1::Start& start, int own_index, int epoch_members, RankPlan& plan);

}  // namespace ringserve
