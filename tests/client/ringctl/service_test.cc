// ringctl's demo and load generator against a whole service.
#include <memory>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "tests/support/cluster.h"

namespace ringserve::test {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

class Ringctl : public ::testing::Test {
 protected:
  // Runs `ringctl ARGUMENTS --server ...` to its end.
  std::unique_ptr<Process> Run(std::vector<std::string> arguments) {
    arguments.insert(arguments.end(), {"--server", cluster_.address()});
    auto ringctl = spawner_.Start(Binary("ringctl"), arguments);
    ringctl->WaitForExit(3 * kPatience);
    return ringctl;
  }

  Spawner spawner_;
  Cluster cluster_{{.workers = 3}};
};

TEST_F(Ringctl, DemoFindsEveryAnswerRight) {
  auto demo = Run({"demo", "--tokens", "3000"});
  EXPECT_EQ(demo->WaitForExit(), 0) << demo->output() << demo->log() << cluster_.Logs();
  EXPECT_THAT(demo->output(), HasSubstr("answers are right"));
  EXPECT_THAT(demo->output(), HasSubstr("workers 3"));
  EXPECT_THAT(demo->output(), HasSubstr("Try next"));
}

TEST_F(Ringctl, DemoDoesNotClaimWhatItCouldNotCheck) {
  auto demo = Run({"demo", "--tokens", "5"});
  EXPECT_EQ(demo->WaitForExit(), 2) << demo->output();
  EXPECT_THAT(demo->log(), HasSubstr("nothing could be checked"));
  EXPECT_THAT(demo->output(), Not(HasSubstr("answers are right")));
}

TEST_F(Ringctl, BenchChecksRequestsOfManyKindsWhileAWorkerIsLost) {
  auto bench = spawner_.Start(Binary("ringctl"), {"bench", "--verify", "--json", "--requests",
                                                  "300", "--server", cluster_.address()});
  ASSERT_TRUE(cluster_.server().WaitForLog("attend request="));
  cluster_.worker(1).Kill();
  cluster_.RestartWorker(1);
  ASSERT_EQ(bench->WaitForExit(3 * kPatience), 0) << bench->log() << cluster_.Logs();
  const auto result = nlohmann::json::parse(bench->output());
  EXPECT_EQ(result["wrong"], 0) << result;
  EXPECT_EQ(result["ok"].get<int>() + result["failed"].get<int>(), 300) << result;
  EXPECT_GT(result["ok"], 200) << result;
  for (const auto& [code, count] : result["failures"].items()) EXPECT_EQ(code, "UNAVAILABLE");
}

TEST_F(Ringctl, BenchEndsAsTheFailuresSayWhenNoneSucceeded) {
  auto bench = Run({"bench", "--requests", "2", "--q-heads", "1", "--q-len", "10", "--head-dim",
                    "8", "--workers", "7"});
  EXPECT_EQ(bench->WaitForExit(), 4) << bench->output();
  EXPECT_THAT(bench->output(), HasSubstr("failed 2"));
  EXPECT_THAT(bench->log(), HasSubstr("only 3 workers have joined"));
  bench = Run({"bench", "--verify", "--scale", "1e308", "--requests", "2", "--q-heads", "1",
               "--q-len", "40", "--head-dim", "64"});
  EXPECT_EQ(bench->WaitForExit(), 2) << bench->output();
  EXPECT_THAT(bench->log(), HasSubstr("could compare nothing"));
}

TEST_F(Ringctl, BenchTakesAMaskByFlagsWithDimsAlone) {
  auto bench =
      Run({"bench",    "--verify",   "--requests", "3",         "--q-heads",   "2",      "--q-len",
           "200",      "--head-dim", "16",         "--workers", "3",           "--mask", "causal",
           "--window", "20,",        "--sinks",    "2",         "--documents", "70,0,90"});
  EXPECT_EQ(bench->WaitForExit(), 0) << bench->log();
  EXPECT_THAT(bench->output(), HasSubstr("ok 3, retried 0, failed 0, wrong 0"));
  bench = Run({"bench", "--requests", "1", "--window", "20,"});
  EXPECT_EQ(bench->WaitForExit(), 2) << bench->output();
  EXPECT_THAT(bench->log(), HasSubstr("--window is given without --q-heads"));
}

}  // namespace
}  // namespace ringserve::test
