// What the members of an epoch are called in messages.
#pragma once

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "ringserve/v1/cluster.pb.h"

namespace ringserve {

inline std::vector<std::string> MemberNames(const v1::Epoch& epoch) {
  std::vector<std::string> names;
  names.reserve(epoch.members_size());
  for (int member = 0; member < epoch.members_size(); ++member) {
    names.push_back(absl::StrCat("worker ", member, " of epoch ", epoch.id(), " at ",
                                 epoch.members(member).address()));
  }
  return names;
}

}  // namespace ringserve
