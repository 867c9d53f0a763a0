// The worker as a process: options, joining and leaving, and how it ends.
#include <signal.h>
#include <stdlib.h>

#include <algorithm>
#include <filesystem>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "proto/protocol.h"
#include "tests/worker/job.h"

namespace ringserve::test {
namespace {

using ::testing::AnyOf;
using ::testing::HasSubstr;

constexpr char kWorker[] = "ringserve-worker";

bool SaysLeaving(const Member::Seen& seen) {
  for (const auto& message : seen.messages) {
    if (message.leaving()) return true;
  }
  return false;
}

TEST(WorkerProcess, RefusesBadOptionsWithOneLine) {
  const std::pair<std::vector<std::string>, const char*> wrong[] = {
      {{"--device", "tpu"}, "--device is 'tpu'"},
      {{"--threads", "0"}, "--threads"},
      {{"--threads", "many"}, "--threads"},
      {{"--memory-bytes", "0"}, "--memory-bytes"},
      {{"--memory-bytes", "-1"}, "--memory-bytes"},
      {{"--exchange-deadline-ms", "0"}, "--exchange-deadline-ms"},
      {{"--drain-s", "-1"}, "--drain-s"},
      {{"--listen", "0.0.0.0:0"}, "--insecure"},
      {{"--listen", "0.0.0.0:0", "--insecure"}, "--advertise"},
      {{"--listen", "nowhere"}, "nowhere"},
      {{"--tls-cert", "no.crt"}, "--tls-"},
      {{"--tls-cert", "no.crt", "--tls-key", "no.key", "--tls-ca", "no.crt"}, "no.crt"},
      {{"--log-level", "loud"}, "--log-level"},
      {{"--no-such-option"}, "--no-such-option"},
      {{"stray"}, "stray"}};
  Spawner spawner;
  std::vector<std::unique_ptr<Process>> workers;
  for (const auto& [arguments, what] : wrong) {
    workers.push_back(spawner.Start(Binary(kWorker), arguments));
  }
  for (size_t i = 0; i < workers.size(); ++i) {
    const auto& worker = workers[i];
    const char* what = wrong[i].second;
    EXPECT_EQ(worker->WaitForExit(), 2) << what;
    ASSERT_TRUE(worker->WaitForLog(what).has_value()) << what << ": " << worker->log();
    EXPECT_EQ(worker->log().find('\n'), worker->log().size() - 1) << worker->log();
    EXPECT_EQ(worker->output(), "");
  }
}

TEST(WorkerProcess, TakesItsOptionsFromTheEnvironment) {
  FakeCoordinator coordinator;
  Spawner spawner;
  const auto worker = spawner.Start(Binary(kWorker), {"--die-with-parent"},
                                    {{"RINGSERVE_COORDINATOR", coordinator.address()},
                                     {"RINGSERVE_THREADS", "3"},
                                     {"RINGSERVE_MEMORY_BYTES", "1GiB"},
                                     {"RINGSERVE_ADVERTISE", "worker.example:1234"}});
  ASSERT_TRUE(coordinator.AwaitJoins(1)) << worker->log();
  const v1::Hello hello = coordinator.member(0).hello();
  EXPECT_EQ(hello.protocol_version(), kProtocolVersion);
  EXPECT_EQ(hello.address(), "worker.example:1234");
  EXPECT_EQ(hello.device(), "cpu");
  EXPECT_EQ(hello.threads(), 3);
  EXPECT_EQ(hello.memory_bytes(), 1u << 30);
  EXPECT_EQ(hello.pid(), worker->pid());
  EXPECT_FALSE(hello.version().empty());
  EXPECT_FALSE(hello.libtorch().empty());
}

TEST(WorkerProcess, LetsItsIdleThreadsSleep) {
  const auto spins = [](const std::map<std::string, std::string>& environment) {
    Spawner spawner;
    const auto worker = spawner.Start(Binary(kWorker), {"--version"}, environment);
    EXPECT_EQ(worker->WaitForExit(), 0);
    // OpenMP tells what it has read whenever it is loaded: the last time counts.
    EXPECT_FALSE(worker->WaitForLog("no such line").has_value());
    const std::string log = worker->log();
    return log.substr(std::min(log.rfind("GOMP_SPINCOUNT"), log.size()), 20);
  };
  EXPECT_EQ(spins({{"OMP_WAIT_POLICY", ""}, {"OMP_DISPLAY_ENV", "verbose"}}),
            "GOMP_SPINCOUNT = '0'");
  // Who asks for something else is heard.
  EXPECT_NE(spins({{"OMP_WAIT_POLICY", "ACTIVE"}, {"OMP_DISPLAY_ENV", "verbose"}}),
            "GOMP_SPINCOUNT = '0'");
}

// A port that is taken is a fault of the machine, not of the command line.
TEST(WorkerProcess, SaysThatItCannotListen) {
  FakeCoordinator taken;
  Spawner spawner;
  const auto worker = spawner.Start(Binary(kWorker), {"--listen", taken.address()});
  EXPECT_EQ(worker->WaitForExit(), 1);
  EXPECT_TRUE(worker->WaitForLog("cannot listen on " + taken.address())) << worker->log();
}

TEST(WorkerProcess, TakesNoUnixSocketFromALivingProcess) {
  char folder[] = "/tmp/ringserve-worker-XXXXXX";
  ASSERT_NE(mkdtemp(folder), nullptr);
  const std::string path = absl::StrCat(folder, "/socket");
  FakeCoordinator coordinator;
  Spawner spawner;
  const auto start = [&] {
    return spawner.Start(Binary(kWorker), {"--die-with-parent", "--coordinator",
                                           coordinator.address(), "--listen", "unix:" + path});
  };
  auto first = start();
  ASSERT_TRUE(first->WaitForAddress().has_value()) << first->log();
  const auto second = start();
  EXPECT_EQ(second->WaitForExit(), 1);
  EXPECT_TRUE(second->WaitForLog("another process does")) << second->log();
  // What a process that was killed leaves behind is nobody's.
  first->Kill();
  EXPECT_TRUE(first->WaitForExit().has_value());
  EXPECT_TRUE(std::filesystem::exists(path));
  const auto third = start();
  EXPECT_TRUE(third->WaitForAddress().has_value()) << third->log();
  third->Kill();
  EXPECT_TRUE(third->WaitForExit().has_value());
  std::filesystem::remove_all(folder);
}

TEST(WorkerProcess, SaysWhyTheCoordinatorDoesNotTakeItAndTriesAgain) {
  FakeCoordinator coordinator;
  Spawner spawner;
  const auto worker =
      spawner.Start(Binary(kWorker), {"--coordinator", coordinator.address(), "--die-with-parent"});
  ASSERT_TRUE(coordinator.AwaitJoins(1));
  coordinator.member(0).hello();
  coordinator.member(0).End(grpc::Status(grpc::FAILED_PRECONDITION, "protocol version 1, not 2"));
  const auto line = worker->WaitForLog("not_joined");
  ASSERT_TRUE(line.has_value());
  EXPECT_THAT(*line, HasSubstr("protocol version 1, not 2"));
  EXPECT_TRUE(coordinator.AwaitJoins(2));
}

TEST(WorkerProcess, JoinsACoordinatorThatWasRestarted) {
  std::string address;
  Spawner spawner;
  std::unique_ptr<Process> worker;
  {
    FakeCoordinator first;
    address = first.address();
    worker = spawner.Start(Binary(kWorker), {"--coordinator", address, "--die-with-parent"});
    ASSERT_TRUE(first.AwaitJoins(1));
    first.member(0).Welcome("w0");
    first.member(0).SendEpoch("a1", {first.member(0).hello().address()}, 0);
    ASSERT_TRUE(first.member(0).AwaitEpochReady("a1"));
  }
  FakeCoordinator second(address);
  ASSERT_TRUE(second.AwaitJoins(1));
  EXPECT_EQ(second.member(0).hello().pid(), worker->pid());
  second.member(0).Welcome("w1");
  second.member(0).SendEpoch("b1", {second.member(0).hello().address()}, 0);
  EXPECT_TRUE(second.member(0).AwaitEpochReady("b1"));
}

TEST(WorkerProcess, LeavesInGoodOrderWhenToldTo) {
  for (const int signal : {SIGTERM, SIGINT}) {
    FakeCluster cluster(1);
    const Job job(cluster, MakeSpec(v1::DTYPE_F32, 1, 1, 50, 16, true), {}, 1);
    HeldCalls calls(cluster, job, {0});
    cluster.worker(0).Signal(signal);
    ASSERT_TRUE(cluster.member(0).Await(SaysLeaving));
    // A job that it has is still run.
    calls.Start("e1");
    Tensors tensors = job.Fresh();
    ASSERT_TRUE(calls.Collect(job, tensors)[0].ok());
    EXPECT_EQ(job.WhatIsWrong(tensors), "");
    EXPECT_TRUE(cluster.worker(0).running());
    cluster.member(0).End(grpc::Status::OK);
    EXPECT_EQ(cluster.worker(0).WaitForExit(), 0) << cluster.worker(0).log();
  }
}

TEST(WorkerProcess, LeavesUnfinishedJobsBehindWhenItsTimeIsUp) {
  FakeCluster cluster(1, {"--drain-s", "0"});
  const Job job(cluster, MakeSpec(v1::DTYPE_F32, 1, 1, 50, 16, true), {}, 1);
  HeldCalls calls(cluster, job, {0});
  cluster.worker(0).Signal(SIGTERM);
  EXPECT_EQ(cluster.worker(0).WaitForExit(), 3) << cluster.worker(0).log();
  EXPECT_EQ(calls.rank(0).Finish().code(), absl::StatusCode::kUnavailable);
}

TEST(WorkerProcess, EndsAtOnceAtTheSecondSignal) {
  FakeCluster cluster(1);
  cluster.worker(0).Signal(SIGTERM);
  ASSERT_TRUE(cluster.member(0).Await(SaysLeaving));
  cluster.worker(0).Signal(SIGINT);
  EXPECT_EQ(cluster.worker(0).WaitForExit(), 128 + SIGINT);
}

TEST(WorkerProcess, LeavesAtOnceWithoutACoordinator) {
  std::string nobody;
  { nobody = FakeCoordinator().address(); }
  Spawner spawner;
  const auto worker =
      spawner.Start(Binary(kWorker), {"--coordinator", nobody, "--die-with-parent"});
  ASSERT_TRUE(worker->WaitForAddress().has_value());
  worker->Signal(SIGTERM);
  EXPECT_EQ(worker->WaitForExit(), 0) << worker->log();
}

TEST(WorkerProcess, EndsWithTheOneThatStartedIt) {
  FakeCoordinator coordinator;
  auto spawner = std::make_unique<Spawner>();
  const auto worker = spawner->Start(Binary(kWorker),
                                     {"--coordinator", coordinator.address(), "--die-with-parent"});
  ASSERT_TRUE(coordinator.AwaitJoins(1));
  spawner.reset();
  EXPECT_EQ(worker->WaitForExit(), -SIGKILL);
}

}  // namespace
}  // namespace ringserve::test
