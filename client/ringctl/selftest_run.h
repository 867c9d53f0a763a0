// Sends the cases of a self-test to a service, one after the other, and judges the answers.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "client/ringctl/selftest_case.h"
#include "ringserve/client.h"

namespace ringserve {

enum class Outcome { kPassed, kFailed, kSkipped };

// What became of one case.
struct CaseResult {
  int workers = 0;
  std::string group;
  Outcome outcome = Outcome::kPassed;
  std::string why;     // failed or skipped, in words
  std::string replay;  // the command that runs it again; empty: none does
  double worst = 0;    // the error furthest beyond its tolerance, in tolerances; above 1: wrong
  double seconds = 0;  // of the requests
  nlohmann::ordered_json details = nlohmann::ordered_json::object();  // for the report
};

// Blocks; each of at most two requests ends within `deadline`, as the client library bounds it. An
// answer is right where rows of it (verify.h) and all gradients (reference_gradients.h) are within
// their tolerances of fp64, and its plan has the workers, balancer and rotate method that were
// asked for. A request that is UNIMPLEMENTED skips the case where the service `may_lack` things, as
// one of another version may; any other failure fails it: nothing is retried.
CaseResult RunSelftestCase(Client& client, const SelftestCase& one,
                           std::chrono::milliseconds deadline, bool may_lack);

}  // namespace ringserve
