// `ringctl selftest` over clusters that it starts itself.
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "tests/client/ringctl/scratch_folder.h"
#include "tests/support/process.h"

namespace ringserve::test {
namespace {

using ::testing::HasSubstr;

class SelftestOverClusters : public ::testing::Test {
 protected:
  // Runs `ringctl selftest FLAGS --report ...` to its end.
  std::unique_ptr<Process> Run(std::vector<std::string> flags) {
    flags.insert(flags.begin(), "selftest");
    flags.insert(flags.end(), {"--report", path_});
    auto selftest = spawner_.Start(
        Binary("ringctl"), flags, {{"RINGSERVE_LOST_AFTER_MS", std::to_string(1'000 * kSlowness)}});
    exit_ = selftest->WaitForExit(6 * kPatience);
    std::ifstream file(path_);
    report_ = nlohmann::json::parse(file, nullptr, false);
    return selftest;
  }

  ScratchFolder folder_;
  const std::string path_ = folder_.Path("report.json");
  Spawner spawner_;
  std::optional<int> exit_;
  nlohmann::json report_;
};

TEST_F(SelftestOverClusters, PassesOnCpusAndReportsEveryCase) {
  const auto selftest = Run(
      {"--device", "cpu", "--workers", "1,2", "--only", "cases", "--cases", "8", "--seed", "100"});
  ASSERT_EQ(exit_, 0) << selftest->output() << selftest->log();
  EXPECT_THAT(selftest->output(), HasSubstr("selftest: 16 passed, 0 failed, 0 skipped, on cpu"));
  EXPECT_THAT(selftest->output(), HasSubstr("forward f32"));
  EXPECT_THAT(selftest->output(), HasSubstr("report: " + path_));
  ASSERT_FALSE(report_.is_discarded());
  EXPECT_EQ(report_["summary"]["passed"], 16);
  EXPECT_THAT(report_["devices"].get<std::string>(), HasSubstr("cpu "));
  ASSERT_EQ(report_["clusters"].size(), 2u);
  EXPECT_EQ(report_["clusters"][1]["workers"].size(), 2u);
  EXPECT_EQ(report_["clusters"][1]["workers"][0]["device"], "cpu");
  ASSERT_EQ(report_["cases"].size(), 16u);
  const auto& last = report_["cases"][15];
  EXPECT_EQ(last["seed"], 107);
  EXPECT_EQ(last["workers"], 2);
  EXPECT_EQ(last["outcome"], "passed");
  EXPECT_EQ(last["plan"]["workers"], 2);
  EXPECT_GT(last["verify"]["tolerance_out"], 0);
  EXPECT_EQ(report_["groups"].size(), 12u) << report_["groups"];
}

TEST_F(SelftestOverClusters, KillsAWorkerUnderLoadAndMeasures) {
  auto selftest = Run({"--device", "cpu", "--workers", "2", "--only", "faults"});
  EXPECT_EQ(exit_, 0) << selftest->output() << selftest->log();
  EXPECT_THAT(selftest->output(), HasSubstr("selftest: 2 passed, 0 failed"));
  selftest = Run({"--device", "cpu", "--workers", "1,2", "--only", "speed"});
  EXPECT_EQ(exit_, 0) << selftest->output() << selftest->log();
  EXPECT_THAT(selftest->output(), HasSubstr("OF ONE WORKER'S"));
  EXPECT_EQ(report_["speed"].size(), 4u);
}

TEST_F(SelftestOverClusters, SkipsEverythingWithTheReasonWhereThereIsNoGpu) {
  const auto selftest = Run({"--device", "cuda"});
  ASSERT_FALSE(report_.is_discarded()) << selftest->log();
  if (report_["devices"].get<std::string>().find("\ncuda:") != std::string::npos) {
    GTEST_SKIP() << "this machine has a GPU";
  }
  EXPECT_EQ(exit_, 0) << selftest->output() << selftest->log();
  EXPECT_THAT(selftest->output(), HasSubstr("SKIPPED: no CUDA device: "));
  EXPECT_THAT(selftest->output(), HasSubstr("selftest: 0 passed, 0 failed, 10 skipped, on cuda"));
  EXPECT_EQ(report_["summary"]["skipped"], 10);
  EXPECT_THAT(report_["cases"][0]["why"].get<std::string>(), HasSubstr("no CUDA device: "));
}

TEST_F(SelftestOverClusters, ServesAndAsksOverTlsWhereTheEnvironmentSaysSo) {
  const std::string certs = folder_.Path("certs");
  const std::string command =
      std::string(RINGSERVE_TEST_DATA) + "/../deploy/make-certs " + certs + " all >/dev/null";
  ASSERT_EQ(std::system(command.c_str()), 0) << command;
  auto selftest = spawner_.Start(
      Binary("ringctl"),
      {"selftest", "--device", "cpu", "--workers", "1", "--only", "cases", "--cases", "3"},
      {{"RINGSERVE_TLS_CERT", certs + "/all.crt"},
       {"RINGSERVE_TLS_KEY", certs + "/all.key"},
       {"RINGSERVE_TLS_CA", certs + "/ca.crt"}});
  EXPECT_EQ(selftest->WaitForExit(3 * kPatience), 0) << selftest->output() << selftest->log();
  EXPECT_THAT(selftest->output(), HasSubstr("selftest: 3 passed, 0 failed"));
}

TEST_F(SelftestOverClusters, ReportsTheLogOfAPartThatFailedAndTheWholeCommand) {
  const auto selftest = Run({"--device", "cpu", "--workers", "1", "--only", "cases", "--cases", "1",
                             "--deadline", "0.001"});
  EXPECT_EQ(exit_, 1) << selftest->output() << selftest->log();
  ASSERT_FALSE(report_.is_discarded());
  EXPECT_THAT(report_["log"].get<std::string>(), HasSubstr("After cases, workers: 1\n"));
  const std::string command =
      " selftest --only cases --device cpu --workers 1 --cases 1 --seed 0 "
      "--deadline 0.001";
  EXPECT_THAT(report_["command"].get<std::string>(), HasSubstr(command));
  EXPECT_EQ(report_["cases"][0]["replay"], report_["command"]);
}

TEST_F(SelftestOverClusters, SaysWhyAClusterDoesNotStart) {
  auto selftest =
      spawner_.Start(Binary("ringctl"), {"selftest", "--device", "cpu", "--workers", "1"},
                     {{"RINGSERVE_DRAIN_S", "x"}});
  EXPECT_EQ(selftest->WaitForExit(3 * kPatience), 1) << selftest->output();
  EXPECT_THAT(selftest->output(), HasSubstr("before it was ready"));
  EXPECT_THAT(selftest->output(), HasSubstr("RINGSERVE_DRAIN_S"));
}

}  // namespace
}  // namespace ringserve::test
