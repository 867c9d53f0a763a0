// A backward ring of threads, over the plan of a forward pass.
#pragma once

#include <functional>
#include <vector>

#include "tests/worker/attention/local_ring.h"

namespace ringserve::test {

// What goes in beside a request's own tensors: dense bytes of the whole request.
struct Answered {
  std::vector<std::byte> out, lse;  // as the forward pass returned them
  std::vector<std::byte> d_out;
  std::vector<std::byte> d_lse;  // empty: none
};

struct BackwardOutcome {
  std::vector<RankOutcome> ranks;
  std::vector<uint64_t> bytes_expected;  // by rank: what its plan says that it sends
  std::vector<std::byte> d_q, d_k, d_v;  // dense, in the spec's dtype
  std::vector<double> d_sinks;

  absl::Status status() const;  // the first that is not OK
};

// `options.alter` is called with a copy, which the rank's plan is made of.
BackwardOutcome RunLocallyBackward(const Plan& plan, const Inputs& inputs, const Answered& answered,
                                   const LocalRingOptions& options = {});

}  // namespace ringserve::test
