// What is remembered of one request: when its phases began and what was counted, for the statistics
// that travel back and for the log.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "ringserve/v1/attention.pb.h"

namespace ringserve {

struct RequestRecord {
  using Clock = std::chrono::steady_clock;
  using Moment = std::optional<Clock::time_point>;  // nothing: not reached

  const char* method = "attend";  // or "attend_backward"
  std::string request_id = "-";
  uint64_t job = 0;
  std::string epoch;
  v1::PlanSummary plan;
  Moment begun, header, admitted, input_complete, started, computed, downloaded, ended;
  uint64_t upload_bytes = 0;
  uint64_t download_bytes = 0;
  std::vector<v1::RankStatistics> ranks;

  // Of a request that is through but for this message.
  v1::Statistics ToProto(Clock::time_point now) const;

  // "request=... job=... status=... ..."; phases that were not reached are 0.
  std::string LogLine(const absl::Status& outcome) const;
};

}  // namespace ringserve
