// What becomes of requests while a worker dies: they fail as they should or are retried, no answer
// is wrong, nothing hangs, and the cluster is whole again.
#pragma once

#include <cstdint>
#include <vector>

#include "client/ringctl/selftest_run.h"
#include "ringserve/client.h"

namespace ringserve {

inline constexpr char kFaults[] = "worker killed";

// `client` speaks to a cluster of `workers` workers that are processes of this machine and of ours,
// and that something starts again where they die. Kills one of them twice: under requests that are
// not retried, and under requests that are. Blocks, minutes at most.
std::vector<CaseResult> RunFaultCases(Client& client, int workers, uint64_t seed);

}  // namespace ringserve
