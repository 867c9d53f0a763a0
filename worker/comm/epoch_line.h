// How a communicator that is being built reaches the other members of its epoch, by way of the
// coordinator, and says how that ended. Any thread; never blocks; also when the membership that the
// epoch came with is over, and who held it is gone: then nobody hears.
#pragma once

#include <functional>
#include <string>

#include "absl/status/status.h"

namespace ringserve {

struct EpochLine {
  // Of the epoch's first member: every member's Communicator::Meet gets the token.
  std::function<void(const std::string& token)> meet;
  // Once: OK, or why the communicator came to nothing.
  std::function<void(const absl::Status& status)> built;
};

}  // namespace ringserve
