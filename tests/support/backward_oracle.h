// The oracle of the backward pass: gradients of dense attention by its formulas, in fp64, one query
// at a time. Knows requests, not plans.
#pragma once

#include <string>
#include <vector>

#include "tests/support/oracle.h"

namespace ringserve::test {

// Each with the sum of the absolute values of what was added up to it.
struct ReferenceGradient {
  std::vector<double> values, magnitudes;
};

struct ReferenceGradients {
  ReferenceGradient d_q, d_k, d_v;  // in the spec's layout
  ReferenceGradient d_sinks;        // [Hq]; 0 without sink logits
  double largest_score = 0;         // as of Reference
};

// `d_out` as out, `d_lse` as lse (empty: 0) of the request, in its types. With `lse_without_sinks`
// d_lse is of the lse that does not count them.
ReferenceGradients AttendBackward(const v1::AttentionSpec& spec, const Inputs& inputs,
                                  const std::vector<std::byte>& d_out,
                                  const std::vector<std::byte>& d_lse,
                                  bool lse_without_sinks = false);

// Empty where every number (dense bytes of `dtype`) is within rounding of the result, of the
// weights and of the sums it stands for; else what is wrong, for a test's message.
std::string CompareGradient(const char* name, const v1::AttentionSpec& spec,
                            const ReferenceGradients& reference, const ReferenceGradient& expected,
                            std::span<const std::byte> actual, v1::DType dtype);

}  // namespace ringserve::test
