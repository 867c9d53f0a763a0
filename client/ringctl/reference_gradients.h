// The gradients of attention by their formulas, in fp64, for every query and key: what the
// service's AttendBackward is measured against, and shares no code with. For small requests.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "client/ringctl/verify.h"
#include "ringserve/client.h"
#include "ringserve/v1/attention.pb.h"

namespace ringserve {

// Each number with the sum of the absolute values of what was added up to it.
struct ReferenceGradient {
  std::vector<double> values, magnitudes;
};

struct ReferenceGradients {
  ReferenceGradient d_q, d_k, d_v;  // in the spec's layout
  ReferenceGradient d_sink_logits;  // [Hq]; empty without sink logits
  double largest_score = 0;         // the largest number that was added to a score among them
};

// `d_out` as out, `d_lse` as lse or empty, which is 0; with `lse_without_sinks` d_lse is of the lse
// that does not count them. All inputs are finite, and have the sizes that `spec` says.
ReferenceGradients AttentionGradients(const v1::AttentionSpec& spec, const AttendInputs& inputs,
                                      std::span<const std::byte> d_out,
                                      std::span<const std::byte> d_lse, bool lse_without_sinks);

// The number of `actual` (dense bytes of `dtype`) that is furthest beyond its tolerance, at its
// index as `element`; a tolerance is rounding of the result, of the weights, of `out`, which the
// service was given in the spec's dtype, and of the sums. Nothing: there are no numbers.
std::optional<Deviation> WorstGradient(const v1::AttentionSpec& spec,
                                       const ReferenceGradients& gradients,
                                       const ReferenceGradient& expected,
                                       std::span<const std::byte> actual, v1::DType dtype);

}  // namespace ringserve
