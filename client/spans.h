// Do the caller's spans fit the header? Looked at before anything is sent.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "ringserve/client.h"

namespace ringserve {

// The tensors of one call: sent in this order, and filled in.
struct CallSpans {
  struct Input {
    v1::TensorId tensor;
    std::span<const std::byte> bytes;
  };
  struct Output {
    v1::TensorId tensor;
    std::span<std::byte> bytes;
  };
  std::vector<Input> inputs;
  std::vector<Output> outputs;

  uint64_t bytes() const;  // of all
};

// INVALID_ARGUMENT: a span's size is not what the spec says; lse given without options.return_lse
// or the other way round; outputs that overlap each other or the inputs (a second attempt would
// send overwritten bytes). The message names span, size and what was expected.
absl::StatusOr<CallSpans> SpansOf(const v1::AttendHeader& header, const AttendInputs& inputs,
                                  const AttendOutputs& outputs);

// Likewise of AttendBackward.
absl::StatusOr<CallSpans> SpansOf(const v1::AttendHeader& header, const BackwardInputs& inputs,
                                  const BackwardOutputs& outputs);

}  // namespace ringserve
