// One random request through planner, assignments, shards and ring loop, judged by the oracle.
#pragma once

#include <vector>

#include "tests/support/random_case.h"
#include "tests/worker/attention/every_block.h"
#include "worker/comm/communicator.h"

namespace ringserve::test {

// The most workers of a case.
inline constexpr int kMostWorkers = 4;

// Failures are those of the present test, with all that is needed to see them again.
// `communicators`: kMostWorkers of them, by member; none: in memory.
void CheckCase(const Case& c, const std::vector<Communicator*>& communicators = {},
               const Block& block = FirstBlock());

}  // namespace ringserve::test
