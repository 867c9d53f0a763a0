// The text that `ringctl demo` attends over.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"

namespace ringserve {

struct DemoText {
  std::string bytes;
  std::string origin;  // for people
};

// The first `tokens` bytes of the file at `path`, or all of it where it is shorter. `path` empty:
// of the licence texts that every Debian has, one after the other in a fixed order. NOT_FOUND: no
// such file, or not readable. INVALID_ARGUMENT: it is empty.
absl::StatusOr<DemoText> ReadDemoText(const std::string& path, uint64_t tokens);

}  // namespace ringserve
