// The mask compiler: what a request says about visibility becomes disjoint bands in global
// coordinates. Everything behind it knows bands only.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "proto/band.h"
#include "ringserve/v1/attention.pb.h"

namespace ringserve {

// One list of bands that holds for all batch rows, or one per batch row. The bands of a list are
// disjoint, normalized, never empty and sorted by (q_begin, k_begin); a list without bands sees
// nothing. `spec` is valid (proto/validate.h). UNIMPLEMENTED: a mask field that is not compiled;
// names it.
absl::StatusOr<std::vector<std::vector<Band>>> CompileMasks(const v1::AttentionSpec& spec);

// For people: "full", "causal", "causal, q_offset 5", "causal, bottom-right", "4 masks, one per
// batch row".
std::string DescribeMasks(const v1::AttentionSpec& spec);

}  // namespace ringserve
