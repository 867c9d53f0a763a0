// Is a request well formed, and is it one that is served? Everything a stranger may send is looked
// at here, before anything is allocated or multiplied unchecked.
#pragma once

#include <cstdint>
#include <limits>

#include "absl/status/status.h"
#include "ringserve/v1/attention.pb.h"

namespace ringserve {

// The largest dim, document length, block and PTRR block; the most that a mask's other numbers may
// be, either way.
inline constexpr int64_t kMaxDim = std::numeric_limits<int32_t>::max();
inline constexpr int64_t kMaxOffset = int64_t{1} << 40;

// INVALID_ARGUMENT: dims < 1 or too large, tensors that take more than 2^62 bytes together, heads
// that are no multiple, unknown enum values, a scale that is not finite, a number of masks that is
// neither 0, 1 nor batch or is above 65,536, mask fields that contradict each other. UNIMPLEMENTED:
// a named field that is not served, or one of a number that this server does not know and might
// have to heed. Every message names the field, the value and the limit: "spec.q_heads is 7: must be
// a multiple of spec.kv_heads (2)".
absl::Status ValidateSpec(const v1::AttentionSpec& spec);

// INVALID_ARGUMENT: workers < 0 or > kMaxRanks, unknown enum values. UNIMPLEMENTED: see
// attention.proto.
absl::Status ValidateOptions(const v1::AttentionOptions& options);

// The header of Attend, or of AttendBackward: both, what they contradict each other in
// (INVALID_ARGUMENT: a bias with pass-Q), request_id, session, and what the call does not have
// (INVALID_ARGUMENT: d_lse in Attend; return_lse and pass-Q in AttendBackward).
absl::Status ValidateHeader(const v1::AttendHeader& header, bool backward = false);

// Both, their contradictions, and that the request has no field of a number that this server does
// not know.
absl::Status ValidatePlanRequest(const v1::PlanRequest& request);

}  // namespace ringserve
