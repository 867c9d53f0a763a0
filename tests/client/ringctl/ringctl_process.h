// ringctl under test: the program itself, run to its end.
#pragma once

#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "tests/support/process.h"

namespace ringserve::test {

struct RunResult {
  int exit = -1;
  std::string out, err;

  // Its standard output as one JSON value; discarded where it is none.
  nlohmann::json Json() const { return nlohmann::json::parse(out, nullptr, false); }
};

// Runs `ringctl --server SERVER ARGUMENTS...`. Throws where it does not end.
inline RunResult RunRingctl(Spawner& spawner, const std::string& server,
                            std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), {"--server", server});
  const auto process = spawner.Start(Binary("ringctl"), arguments);
  const auto exit = process->WaitForExit();
  process->WaitForLog("\x01");  // which it never says: until all it said is read
  if (!exit.has_value()) throw std::runtime_error("ringctl does not end:\n" + process->log());
  return {*exit, process->output(), process->log()};
}

}  // namespace ringserve::test
