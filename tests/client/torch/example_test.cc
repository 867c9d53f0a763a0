// The example runs as its comment says.
#include <optional>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/cluster.h"

namespace ringserve::test {
namespace {

TEST(Example, GivesTheSameNumbersHereAndServed) {
  Cluster cluster({.workers = 2});
  Spawner spawner;
  const std::unique_ptr<Process> example =
      spawner.Start(Binary("context_parallel_example"), {cluster.address(), "300"});
  EXPECT_EQ(example->WaitForExit(), 0) << example->output() << example->log();
  EXPECT_THAT(example->output(), ::testing::HasSubstr("300 tokens, 2 layers"));
  EXPECT_THAT(example->output(), ::testing::HasSubstr("2 calls and 2 backward"));
}

TEST(Example, SaysWhyItFails) {
  Spawner spawner;
  const std::unique_ptr<Process> nobody =
      spawner.Start(Binary("context_parallel_example"), {"127.0.0.1:1", "3"});
  EXPECT_EQ(nobody->WaitForExit(), 1);
  EXPECT_THAT(nobody->log(), ::testing::HasSubstr("UNAVAILABLE"));
  const std::unique_ptr<Process> wrong =
      spawner.Start(Binary("context_parallel_example"), {"127.0.0.1:1"});
  EXPECT_EQ(wrong->WaitForExit(), 2);
}

}  // namespace
}  // namespace ringserve::test
