// What gRPC does not look at before it listens on a unix socket.
#pragma once

#include <string>

#include "absl/status/status.h"

namespace ringserve {

// UNAVAILABLE: `address` is unix:PATH and somebody accepts connections there. A listener of gRPC
// would take the name away from that process without a word. OK for any other address, and for a
// socket that a process left behind. Does not block.
absl::Status CheckNobodyListens(const std::string& address);

}  // namespace ringserve
