// `ringctl up` as its user sees it: real processes that come, die, come back and all go.
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "ringserve/client.h"
#include "tests/client/ringctl/scratch_folder.h"
#include "tests/support/process.h"
#include "tests/support/wait.h"

namespace ringserve::test {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

constexpr int kStopped = 0;

// A process that is there and no zombie.
bool Alive(pid_t pid) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/stat");
  std::string line;
  std::getline(file, line);
  const size_t name_end = line.rfind(')');
  return name_end != std::string::npos && line[name_end + 2] != 'Z';
}

class Up : public ::testing::Test {
 protected:
  std::unique_ptr<Process> Start(std::vector<std::string> flags) {
    flags.insert(flags.begin(), "up");
    return spawner_.Start(Binary("ringctl"), flags, {{"RINGSERVE_LOST_AFTER_MS", LostAfter()}});
  }

  // The pid that the latest line "ROLE pid PID" told.
  static pid_t PidOf(const Process& up, const std::string& role) {
    pid_t pid = 0;
    std::istringstream lines(up.output());
    const std::string start = role + " pid ";
    for (std::string line; std::getline(lines, line);) {
      if (line.rfind(start, 0) == 0) pid = std::stoi(line.substr(start.size()));
    }
    return pid;
  }

  // The address of the line "ready ADDRESS"; empty: it did not come.
  static std::string AwaitReady(const Process& up) {
    std::string address;
    WaitUntil([&] {
      std::istringstream lines(up.output());
      for (std::string line; std::getline(lines, line);) {
        if (line.rfind("ready ", 0) == 0) address = line.substr(6);
      }
      return !address.empty() || !up.running();
    });
    return address;
  }

  static std::vector<pid_t> Children(const Process& up, int workers) {
    std::vector<pid_t> pids = {PidOf(up, "coordinator")};
    for (int i = 0; i < workers; ++i) pids.push_back(PidOf(up, "worker " + std::to_string(i)));
    return pids;
  }

  static void ExpectNothingLeft(const std::vector<pid_t>& pids) {
    for (const pid_t pid : pids) {
      EXPECT_GT(pid, 0);
      EXPECT_TRUE(WaitUntil([&] { return !Alive(pid); })) << pid;
    }
  }

  static int WorkersAt(const std::string& address) {
    auto client = Client::Connect({.server = address});
    if (!client.ok()) return -1;
    const auto cluster = (*client)->GetCluster();
    return cluster.ok() ? cluster->workers_size() : -1;
  }

  static std::string LostAfter() { return std::to_string(1'000 * kSlowness); }

  Spawner spawner_;
};

TEST_F(Up, EndsWithItsStandardInputWhereAsked) {
  const auto up = Start({"--workers", "1", "--listen", "127.0.0.1:0", "--until-eof"});
  EXPECT_EQ(up->WaitForExit(), kStopped) << up->log();
}

TEST_F(Up, TellsWhoRunsAndWhenAllHaveJoinedAndLeavesNothingAtSigterm) {
  for (const int signal : {SIGTERM, SIGINT, SIGHUP}) {
    auto up = Start({"--workers", "3", "--threads", "1", "--listen", "127.0.0.1:0"});
    const std::string address = AwaitReady(*up);
    ASSERT_FALSE(address.empty()) << up->log();
    EXPECT_EQ(WorkersAt(address), 3);
    const std::vector<pid_t> pids = Children(*up, 3);
    for (const pid_t pid : pids) EXPECT_TRUE(Alive(pid));
    up->Signal(signal);
    EXPECT_EQ(up->WaitForExit(), kStopped) << up->log();
    EXPECT_THAT(up->log(), Not(HasSubstr("does not end"))) << up->log();
    ExpectNothingLeft(pids);
  }
}

TEST_F(Up, StartsADeadWorkerAgain) {
  auto up = Start({"--workers", "2", "--threads", "1", "--listen", "127.0.0.1:0"});
  const std::string address = AwaitReady(*up);
  ASSERT_FALSE(address.empty()) << up->log();
  const pid_t before = PidOf(*up, "worker 1");
  kill(before, SIGKILL);
  ASSERT_TRUE(up->WaitForLog("worker 1 (pid " + std::to_string(before) + ") was killed"));
  ASSERT_TRUE(up->WaitForLog("all workers have joined again")) << up->log();
  EXPECT_NE(PidOf(*up, "worker 1"), before);
  EXPECT_TRUE(WaitUntil([&] { return WorkersAt(address) == 2; }));
}

TEST_F(Up, StartsADeadCoordinatorAgainWhereItWas) {
  auto up = Start({"--workers", "2", "--threads", "1", "--listen", "127.0.0.1:0"});
  const std::string address = AwaitReady(*up);
  ASSERT_FALSE(address.empty()) << up->log();
  const std::vector<pid_t> before = Children(*up, 2);
  kill(before[0], SIGKILL);
  ASSERT_TRUE(up->WaitForLog("all workers have joined again")) << up->log();
  EXPECT_EQ(WorkersAt(address), 2);
  EXPECT_NE(PidOf(*up, "coordinator"), before[0]);
  EXPECT_EQ(PidOf(*up, "worker 0"), before[1]);  // it has waited
}

TEST_F(Up, LeavesNothingWhenItIsKilled) {
  auto up = Start({"--workers", "2", "--threads", "1", "--listen", "127.0.0.1:0"});
  ASSERT_FALSE(AwaitReady(*up).empty()) << up->log();
  const std::vector<pid_t> pids = Children(*up, 2);
  up->Kill();
  ExpectNothingLeft(pids);
}

TEST_F(Up, KillsAChildThatDoesNotEnd) {
  auto up = Start({"--workers", "2", "--threads", "1", "--listen", "127.0.0.1:0"});
  ASSERT_FALSE(AwaitReady(*up).empty()) << up->log();
  const std::vector<pid_t> pids = Children(*up, 2);
  kill(pids[1], SIGSTOP);
  up->Signal(SIGTERM);
  EXPECT_EQ(up->WaitForExit(), kStopped);
  EXPECT_THAT(up->log(), HasSubstr("worker 0 (pid " + std::to_string(pids[1]) + ") does not end"));
  ExpectNothingLeft(pids);
}

TEST_F(Up, SaysWhenThePortIsTaken) {
  auto first = Start({"--workers", "1", "--listen", "127.0.0.1:0"});
  const std::string address = AwaitReady(*first);
  ASSERT_FALSE(address.empty()) << first->log();
  auto second = Start({"--workers", "1", "--listen", address});
  EXPECT_EQ(second->WaitForExit(), 1);
  EXPECT_THAT(second->log(), HasSubstr(address));
  EXPECT_THAT(second->log(), HasSubstr("before the cluster was ready"));
  EXPECT_EQ(WorkersAt(address), 1);
}

TEST_F(Up, RefusesWhatCannotWork) {
  const auto refused = [&](const std::vector<std::string>& flags, const std::string& why) {
    auto up = Start(flags);
    EXPECT_EQ(up->WaitForExit(), 2) << up->log();
    EXPECT_THAT(up->log(), HasSubstr(why));
    EXPECT_THAT(up->output(), Not(HasSubstr("pid")));
  };
  refused({"--listen", "0.0.0.0:0"}, "--insecure");
  refused({"--listen", "nonsense"}, "nonsense");
  refused({"--workers", "0"}, "--workers");
  refused({"--threads", "-1"}, "--threads");
  refused({"--memory-bytes", "0"}, "--memory-bytes");
  refused({"--tls-ca", "/dev/null"}, "--tls-cert");
  refused({"--device", "gpu"}, "--device");
}

TEST_F(Up, StartsWorkersOfTheDeviceThatIsAskedFor) {
  auto up = Start({"--workers", "1", "--listen", "127.0.0.1:0", "--device", "cpu"});
  ASSERT_FALSE(AwaitReady(*up).empty()) << up->log();
  EXPECT_TRUE(up->WaitForLog("device=cpu"));
  up = Start({"--listen", "127.0.0.1:0", "--device", "cuda"});
  if (!AwaitReady(*up).empty()) GTEST_SKIP() << "this machine has a GPU";
  EXPECT_EQ(up->WaitForExit(), 2);
  EXPECT_THAT(up->log(), HasSubstr("--device cuda: no CUDA device: "));
}

TEST_F(Up, ObeysTheWorkersVariableWhereNoDeviceIsAskedFor) {
  const std::vector<std::string> flags = {"up", "--workers", "1", "--listen", "127.0.0.1:0"};
  auto up = spawner_.Start(Binary("ringctl"), flags, {{"RINGSERVE_DEVICE", "cpu"}});
  ASSERT_FALSE(AwaitReady(*up).empty()) << up->log();
  EXPECT_TRUE(up->WaitForLog("device=cpu"));
  up = spawner_.Start(Binary("ringctl"), flags, {{"RINGSERVE_DEVICE", "gpu"}});
  EXPECT_EQ(up->WaitForExit(), 2);
  EXPECT_THAT(up->log(), HasSubstr("RINGSERVE_DEVICE is 'gpu': must be auto, cpu, cuda or cuda:N"));
}

// A copy of ringctl beside a worker of ours, whose list of devices a script prints, and which says
// on stderr what it is started with.
class UpOverGpus : public Up {
 protected:
  void SetUp() override {
    namespace fs = std::filesystem;
    fs::copy_file(Binary("ringctl"), folder_.Path("ringctl"));
    fs::create_symlink(Binary("ringserve-server"), folder_.Path("ringserve-server"));
  }
  std::unique_ptr<Process> Start(const std::string& listing, std::vector<std::string> flags) {
    const std::string worker =
        folder_.Write("ringserve-worker",
                      "#!/bin/sh\ncase \"$*\" in *--list-devices*)\n" + listing +
                          ";;\n*)\necho \"shared=$NCCL_MULTI_RANK_GPU_ENABLE $*\" >&2\n"
                          "i=0\nwhile [ $((i += 1)) -lt 200 ] && kill -0 $PPID\ndo sleep 0.05\n"
                          "done;;\nesac\n");
    std::filesystem::permissions(worker, std::filesystem::perms::owner_all);
    flags.insert(flags.begin(), {"up", "--listen", "127.0.0.1:0"});
    return spawner_.Start(folder_.Path("ringctl"), flags, {{"RINGSERVE_DEVICE", ""}});
  }

  static constexpr char kTwo[] =
      "echo 'cuda:0  X, compute capability 9.0, 8.0 GiB'\n"
      "echo 'cuda:1  X, compute capability 9.0, 4.0 GiB'\n";
  ScratchFolder folder_;
};

TEST_F(UpOverGpus, GivesEachAWorkerAndThenSharesThemOut) {
  auto up = Start(kTwo, {});
  for (const char* gpu : {"cuda:0", "cuda:1"}) {
    const auto line = up->WaitForLogLine({"--device", gpu});
    ASSERT_TRUE(line.has_value()) << up->log();
    EXPECT_THAT(*line, HasSubstr("shared= "));
    EXPECT_THAT(*line, Not(HasSubstr("--memory-bytes")));
  }
  up = Start(kTwo, {"--workers", "3"});
  for (const char* gpu : {"cuda:0", "cuda:1"}) {
    const auto line = up->WaitForLogLine({"--device", gpu, "--memory-bytes 1073741824"});
    ASSERT_TRUE(line.has_value()) << up->log();
    EXPECT_THAT(*line, HasSubstr("shared=1 "));
  }
  up = Start(kTwo, {"--device", "cuda:1"});
  EXPECT_TRUE(up->WaitForLogLine({"--device", "cuda:1"})) << up->log();
  EXPECT_THAT(up->log(), Not(HasSubstr("cuda:0")));
}

TEST_F(UpOverGpus, RefusesAGpuThatIsNotThereAndFailsWhereNobodyKnows) {
  auto up = Start(kTwo, {"--device", "cuda:2"});
  EXPECT_EQ(up->WaitForExit(), 2) << up->log();
  EXPECT_THAT(up->log(), HasSubstr("--device cuda:2: "));
  const std::string broken = std::string(kTwo) + "echo 'cuda:2  a GPU; CUDA says: it fell off'\n";
  up = Start(broken, {"--device", "cuda:2"});
  EXPECT_EQ(up->WaitForExit(), 2) << up->log();
  EXPECT_THAT(up->log(), HasSubstr("cuda:2  a GPU; CUDA says: it fell off"));
  up = Start("exit 3\n", {});
  EXPECT_EQ(up->WaitForExit(), 1) << up->log();
  EXPECT_THAT(up->log(), HasSubstr("--list-devices exited with status 3"));
}

TEST_F(Up, ListensOnAUnixSocketAndRemovesIt) {
  std::string folder = ::testing::TempDir() + "up_test_XXXXXX";
  folder = mkdtemp(folder.data());
  const std::string path = folder + "/socket";
  auto up = Start({"--workers", "1", "--listen", "unix:" + path});
  EXPECT_EQ(AwaitReady(*up), "unix:" + path) << up->log();
  EXPECT_EQ(WorkersAt("unix:" + path), 1);
  kill(PidOf(*up, "coordinator"), SIGKILL);  // which leaves the socket behind
  ASSERT_TRUE(up->WaitForLog("all workers have joined again")) << up->log();
  up->Signal(SIGTERM);
  EXPECT_EQ(up->WaitForExit(), kStopped);
  EXPECT_FALSE(std::filesystem::exists(path));
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace ringserve::test
