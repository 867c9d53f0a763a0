// What `status --json` prints, and a self-test's report has of each cluster.
#pragma once

#include <nlohmann/json.hpp>

#include "ringserve/v1/attention.pb.h"

namespace ringserve {

nlohmann::ordered_json StatusJson(const v1::GetClusterResponse& cluster);

}  // namespace ringserve
