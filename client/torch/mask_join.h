// Conditions that come from a call's arguments, added to the masks of its scope.
#pragma once

#include <google/protobuf/repeated_field.h>

#include "absl/status/status.h"
#include "client/torch/dense_mask.h"
#include "ringserve/v1/attention.pb.h"

namespace ringserve {

using Masks = google::protobuf::RepeatedPtrField<v1::Mask>;

// is_causal, which aligns query 0 with key 0 of the sequence. INVALID_ARGUMENT where a mask of the
// scope aligns otherwise, or has a prefix.
absl::Status MakeCausal(Masks& masks);

// attn_mask as bands, where it is made of such and `masks` have room for them. False: it is not,
// and `masks` are as they were.
bool JoinBands(const DenseMask& dense, Masks& masks);

}  // namespace ringserve
