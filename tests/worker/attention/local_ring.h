// A ring of threads: a plan carried out as by the workers, from the assignment's protobuf on, over
// memory or any communicators.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "server/plan/plan.h"
#include "tests/support/oracle.h"
#include "worker/assignment.h"
#include "worker/attention/ring.h"

namespace ringserve::test {

struct LocalRingOptions {
  int threads = 1;  // LibTorch's, of each rank
  const Block* block = &CpuBlock();
  // On the rank's thread: before the run; at the beginning of a step.
  std::function<void(RankAssignment& assignment)> alter;
  std::function<void(int rank, int step, RingProgress& progress)> on_step;
};

// By rank.
struct RankOutcome {
  absl::Status status;
  RingStatistics statistics;
  double seconds = 0;             // of the run alone
  double processor_seconds = 0;   // likewise, of its thread
  uint64_t most_memory_held = 0;  // by RunRing; 0 unless CountMemory was called
};

struct Outcome {
  std::vector<RankOutcome> ranks;
  std::vector<std::byte> out, lse;  // dense, of the whole request

  bool ok() const;
  absl::Status status() const;  // the first that is not OK
};

// `communicators`, by member, of at least as many as there are ranks; none: in memory.
Outcome RunLocally(const Plan& plan, const Inputs& inputs, const LocalRingOptions& options = {},
                   const std::vector<Communicator*>& communicators = {});

}  // namespace ringserve::test
