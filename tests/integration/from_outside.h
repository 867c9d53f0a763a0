// What a platform sees of processes: health checks, and what commands print.
#pragma once

#include <string>

namespace ringserve::test {

// "SERVING", "NOT_SERVING", or why there is no answer. Plaintext.
std::string HealthOf(const std::string& address, const std::string& service = "");

// What a command prints, on both streams, and how it ends.
struct Output {
  std::string text;
  int exit = -1;
};

Output OutputOf(const std::string& command);

}  // namespace ringserve::test
