// What `attend` says about an answer, for people and in JSON.
#pragma once

#include <optional>
#include <string>

#include <nlohmann/json.hpp>

#include "client/ringctl/verify.h"
#include "ringserve/client.h"
#include "ringserve/v1/attention.pb.h"

namespace ringserve {

struct AttendReport {
  v1::AttentionSpec spec;
  AttendResult result;
  std::optional<Verification> verification;
};

// Short, aligned, without a newline at its end. `path`: where the answer is.
std::string ReportText(const AttendReport& report, const std::string& path);

// PlanJson, with bytes as counted, and bytes_between_workers, attempts, request_id, seconds and,
// where it was verified, verify.
nlohmann::ordered_json ReportJson(const AttendReport& report);

// {rows, max_error_out, max_error_lse, tolerance_out, tolerance_lse, ok} and, where it is not ok,
// `worst`. Each tolerance is that of the number whose error stands beside it.
nlohmann::ordered_json VerificationJson(const Verification& verification);

// The number of the answer that is furthest beyond its tolerance, in words.
std::string WorstText(const Verification& verification);

}  // namespace ringserve
