// The oracle: dense attention by its definition, in fp64, one query at a time. Knows requests, not
// plans: shares no mask, layout or arithmetic with what is tested. Sees no LibTorch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "ringserve/v1/attention.pb.h"

namespace ringserve::test {

// A request's tensors, dense, in the spec's dtype and layout; those that it does not have are
// empty.
struct Inputs {
  std::vector<std::byte> q, k, v;
  std::vector<std::byte> bias = {}, alibi_slopes = {}, sink_logits = {};
};

// Standard normal numbers (q times `gain`), the same for the same seed and shapes. The bias hides
// some keys (-inf, or 0 where it is boolean), and some rows all of them; a sink logit may be -inf.
Inputs RandomInputs(const v1::AttentionSpec& spec, uint64_t seed, double gain = 1);

// Does query `q` of batch row `batch_row` see key `k`?
using Sees = std::function<bool(int64_t batch_row, int64_t q, int64_t k)>;

// The spec's masks as attention.proto says them, pair by pair. `spec` is valid; it is copied.
Sees MaskOf(const v1::AttentionSpec& spec);

// |p - k| of a query and a key that lie in the same document; see MaskOf.
using Distance = std::function<int64_t(int64_t batch_row, int64_t q, int64_t k)>;
Distance DistanceOf(const v1::AttentionSpec& spec);

struct Reference {
  std::vector<double> out;                // in the spec's layout
  std::vector<double> lse;                // [B, Hq, Tq]
  std::vector<double> lse_without_sinks;  // likewise; the same where there are no sink logits
  double largest_value = 0;               // of |v|
  double largest_score = 0;  // at least any |scale| sum |q_i k_i| and what is added to it
};

// `spec` is valid but for what it has of extras. The first takes the spec's own masks.
Reference Attend(const v1::AttentionSpec& spec, const Inputs& inputs);
Reference Attend(const v1::AttentionSpec& spec, const Inputs& inputs, const Sees& sees,
                 const Distance& distance = {});

// What `out` and `lse` are off by, at most.
struct Errors {
  double out = 0, lse = 0;
};

// How far an answer in the spec's dtype may be off: rounding of the result and of the weights, of
// the scores (in units of the largest) and of their sum, and the error of the kernel's exp.
Errors ToleranceFor(const v1::AttentionSpec& spec, const Reference& reference);

// Dense bytes as a request returns them. NaN or infinity on one side alone, or -inf against a
// number, is an infinite error.
Errors ErrorsOf(const v1::AttentionSpec& spec, const Reference& reference,
                std::span<const std::byte> out, std::span<const std::byte> lse);

// Empty where out and lse are within the tolerance; else what is wrong, for a test's message. `lse`
// may be empty: not asked for.
std::string Compare(const v1::AttentionSpec& spec, const Reference& reference,
                    std::span<const std::byte> out, std::span<const std::byte> lse);

}  // namespace ringserve::test
