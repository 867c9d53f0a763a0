#include "tests/worker/attention/ring_case.h"

#include <gtest/gtest.h>

#include "tests/worker/attention/local_ring.h"

namespace ringserve::test {

void CheckCase(const Case& c, const std::vector<Communicator*>& communicators, const Block& block) {
  SCOPED_TRACE(c.ToString());
  const absl::StatusOr<Plan> plan =
      MakePlan(c.spec, c.options, {.workers = kMostWorkers}, DefaultMeasurements());
  ASSERT_TRUE(plan.ok()) << plan.status();
  const Inputs inputs = RandomInputs(c.spec, c.seed, c.gain);
  const Outcome outcome = RunLocally(*plan, inputs, {.block = &block}, communicators);
  ASSERT_TRUE(outcome.ok()) << outcome.status();
  Reference reference = Attend(c.spec, inputs);
  if (c.options.lse_without_sinks()) reference.lse = reference.lse_without_sinks;
  EXPECT_EQ(Compare(c.spec, reference, outcome.out, outcome.lse), "") << Describe(*plan);
  for (int rank = 0; rank < plan->ranks(); ++rank) {
    EXPECT_EQ(outcome.ranks[rank].statistics.bytes_sent, plan->bytes_sent[rank]) << rank;
  }
}

}  // namespace ringserve::test
