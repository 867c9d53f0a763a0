// The planner's decisions in `--json`, alike in every subcommand that prints them.
#pragma once

#include <nlohmann/json.hpp>

#include "ringserve/v1/attention.pb.h"

namespace ringserve {

// {"q": [row][rank][[begin, end], ...], "kv": ...}; one row when all batch rows share it.
nlohmann::ordered_json LayoutJson(const v1::Layout& layout);

// balancer, rotate, workers, reason, imbalance, imbalance_total, imbalance_is_bound, work[rank],
// bytes[rank] (sent to other ranks) and layout.
nlohmann::ordered_json PlanJson(const v1::PlanSummary& plan);

}  // namespace ringserve
