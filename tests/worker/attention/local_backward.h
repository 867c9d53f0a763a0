// A backward ring of threads, as the workers carry it out, from the assignment's protobuf on.
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
  // By rank: what its plan says that it sends and holds, and what its shards are of the latter.
  std::vector<uint64_t> bytes_expected, memory_expected, shard_bytes;
  std::vector<std::byte> d_q, d_k, d_v;  // dense, in the spec's dtype
  std::vector<std::byte> d_sinks;        // fp32

  absl::Status status() const;  // the first that is not OK
};

// `forward` is the plan of the forward pass. `options.alter` is called with a copy of the backward
// job's assignment.
BackwardOutcome RunLocallyBackward(const Plan& forward, const Inputs& inputs,
                                   const Answered& answered, const LocalRingOptions& options = {});

}  // namespace ringserve::test
