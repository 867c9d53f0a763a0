// What became of many requests: counts and latencies.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"

namespace ringserve {

struct LoadStatistics {
  int64_t ok = 0;                                // answered, and right as far as that was checked
  int64_t wrong = 0;                             // answered, and wrong
  int64_t failed = 0;                            // not answered
  int64_t retried = 0;                           // of all these: sent more than once
  std::map<absl::StatusCode, int64_t> failures;  // of `failed`, by code
  absl::Status last_failure;
  std::string first_wrong;      // in words
  std::vector<double> seconds;  // of each answer, right or wrong
  uint64_t bytes = 0;           // of the answered requests: tensors up and down

  int64_t requests() const { return ok + wrong + failed; }
  void Add(const LoadStatistics& other);
};

// The nearest-rank percentile of `sorted` (ascending): the least value that at least
// `percent` % (above 0, at most 100) of them do not exceed. NaN where there is none.
double Percentile(const std::vector<double>& sorted, double percent);

}  // namespace ringserve
