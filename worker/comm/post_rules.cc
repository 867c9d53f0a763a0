#include "worker/comm/post_rules.h"

#include <set>

#include "absl/strings/str_cat.h"

namespace ringserve {

absl::Status CheckPost(int self, int members, std::span<const SendOp> sends,
                       std::span<const RecvOp> recvs) {
  std::set<int> to, from;
  const auto other = [&](int member) { return member >= 0 && member < members && member != self; };
  for (const SendOp& send : sends) {
    if (!other(send.peer) || !to.insert(send.peer).second) {
      return absl::InternalError(absl::StrCat("a post sends to member ", send.peer,
                                              ": must be another member, at most once"));
    }
    if (send.keep_alive == nullptr) return absl::InternalError("a post's keep_alive is null");
  }
  for (const RecvOp& recv : recvs) {
    if (!other(recv.peer) || !from.insert(recv.peer).second) {
      return absl::InternalError(absl::StrCat("a post receives from member ", recv.peer,
                                              ": must be another member, at most once"));
    }
  }
  return absl::OkStatus();
}

}  // namespace ringserve
