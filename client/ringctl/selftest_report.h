// What a self-test found: for people, and as one JSON file that can be sent to the maintainers.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "client/ringctl/selftest_run.h"
#include "client/ringctl/selftest_speed.h"

namespace ringserve {

struct SelftestReport {
  std::string command;  // that does the same
  std::string device;   // "cpu" or "cuda"; with --coordinator what its workers have
  std::string listing;  // of ringserve-worker --list-devices; empty: not asked
  std::string began;    // UTC
  double seconds = 0;
  nlohmann::ordered_json clusters = nlohmann::ordered_json::array();  // StatusJson of each
  std::vector<CaseResult> results;
  std::vector<Speed> speeds;
  // Of each part of an own cluster that failed: the end of its processes' log at that time.
  std::string log;

  int64_t Count(Outcome outcome) const;
};

// A row for each group of each number of workers, the reasons of what was skipped, each failure
// with the command that replays it, the speeds, and the line of SelftestSummary. Ends with a
// newline.
std::string SelftestText(const SelftestReport& report);

// "selftest: 96 passed, 0 failed, 4 skipped, on cpu, in 23.1 s"
std::string SelftestSummary(const SelftestReport& report);

nlohmann::ordered_json SelftestJson(const SelftestReport& report);

}  // namespace ringserve
