// Masks at random: of every family and their combinations, the corners more often than chance would
// have it.
#pragma once

#include <cstdint>

#include "ringserve/v1/attention.pb.h"
#include "tests/support/random.h"

namespace ringserve::test {

// Valid for these lengths.
v1::Mask RandomMask(Random& random, int64_t q_len, int64_t kv_len);

}  // namespace ringserve::test
