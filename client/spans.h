// Do the caller's spans fit the header? Looked at before anything is sent.
#pragma once

#include "absl/status/status.h"
#include "ringserve/client.h"

namespace ringserve {

// INVALID_ARGUMENT: a span's size is not what the spec says; lse given without options.return_lse
// or the other way round; outputs that overlap each other or the inputs (a second attempt would
// send overwritten bytes). The message names span, size and what was expected.
absl::Status CheckSpans(const v1::AttendHeader& header, const AttendInputs& inputs,
                        const AttendOutputs& outputs);

}  // namespace ringserve
