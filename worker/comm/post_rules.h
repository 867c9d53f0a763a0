// What every communicator demands of a post.
#pragma once

#include <span>

#include "absl/status/status.h"
#include "worker/comm/communicator.h"

namespace ringserve {

// INTERNAL: the post of member `self` of `members` names itself, nobody, or a peer twice in one
// direction; or nothing keeps its bytes alive.
absl::Status CheckPost(int self, int members, std::span<const SendOp> sends,
                       std::span<const RecvOp> recvs);

}  // namespace ringserve
