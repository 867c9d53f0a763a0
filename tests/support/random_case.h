// Requests at random: everything that is served, the corners more often than chance would have it.
#pragma once

#include <cstdint>
#include <string>

#include "ringserve/v1/attention.pb.h"

namespace ringserve::test {

struct Case {
  uint64_t seed = 0;
  v1::AttentionSpec spec;
  v1::AttentionOptions options;
  double gain = 1;  // for RandomInputs

  // Everything that is needed to see it again.
  std::string ToString() const;
};

// Bias, ALiBi slopes and sink logits: at least one of them.
void AddRandomExtras(Case& c);

// Lengths up to `most_rows`, fewer tokens than workers included; `workers` of 0 to `most_workers`.
Case RandomCase(uint64_t seed, int most_workers, int64_t most_rows);

}  // namespace ringserve::test
