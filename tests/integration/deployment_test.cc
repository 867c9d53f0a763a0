// What a platform relies on: options from files, the ports for probes and for metrics.
#include <unistd.h>

#include <chrono>
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

#include "absl/strings/str_cat.h"
#include "tests/integration/from_outside.h"
#include "tests/integration/held_job.h"
#include "tests/integration/process_facts.h"
#include "tests/support/cluster.h"

namespace ringserve::test {
namespace {

namespace fs = std::filesystem;
using std::chrono::milliseconds;
using ::testing::AllOf;
using ::testing::Contains;
using ::testing::HasSubstr;

// The address that a process has logged as "NAME address=ADDRESS".
std::string Logged(const Process& process, const std::string& name) {
  const std::string words = name + " address=";
  const std::string line = process.WaitForLog(words).value_or("");
  const size_t at = line.find(words);
  if (at == std::string::npos) return "none: " + process.log();
  return line.substr(at + words.size(),
                     line.find_first_of(" \n", at + words.size()) - at - words.size());
}

class DeploymentTest : public ::testing::Test {
 protected:
  DeploymentTest() { fs::create_directory(folder_); }
  ~DeploymentTest() override { fs::remove_all(folder_); }

  void Start(ClusterOptions options) { cluster_ = std::make_unique<Cluster>(std::move(options)); }
  void TearDown() override {
    if (HasFailure() && cluster_ != nullptr) ADD_FAILURE() << cluster_->Logs();
  }

  // The path of a new file.
  std::string File(const std::string& name, const std::string& text) const {
    std::ofstream(folder_ + "/" + name) << text;
    return folder_ + "/" + name;
  }

  const std::string folder_ = absl::StrCat(testing::TempDir(), "ringserve-deployment.", getpid());
  std::unique_ptr<Cluster> cluster_;
};

TEST_F(DeploymentTest, OptionsComeFromAFileToo) {
  const std::string path = File("config.yaml", "max-queued-jobs: 9\nlisten: 127.0.0.1:0\n");
  Spawner spawner;
  const auto server =
      spawner.Start(Binary("ringserve-server"), {"--die-with-parent", "--config", path});
  const std::optional<std::string> address = server->WaitForAddress();
  ASSERT_TRUE(address.has_value()) << server->log();
  EXPECT_EQ((*Client::Connect({.server = *address}))->GetCluster()->limits().max_queued_jobs(), 9);
  const Output worker = OutputOf(Binary("ringserve-worker") + " --config " + path);
  EXPECT_EQ(worker.exit, 2);
  EXPECT_THAT(worker.text, HasSubstr(path + ":1: there is no option 'max-queued-jobs'"));
}

TEST_F(DeploymentTest, AWorkersConfigurationIsCheckedAndPrintedWithoutStartingIt) {
  const std::string path = File("config.yaml", "threads: 3\nmemory-bytes: 2GiB\n");
  const std::string worker = Binary("ringserve-worker") + " --print-config --config " + path;
  const Output printed = OutputOf(worker);
  EXPECT_EQ(printed.exit, 0);
  EXPECT_THAT(printed.text, AllOf(HasSubstr("threads: 3  # " + path + ":1\n"),
                                  HasSubstr("memory-bytes: 2147483648  # " + path + ":2\n")));
  for (const std::string wrong : {"--device abacus", "--listen 0.0.0.0:1", "--health-listen x"}) {
    const Output refused = OutputOf(worker + " " + wrong);
    EXPECT_EQ(refused.exit, 2) << wrong;
    EXPECT_THAT(refused.text, HasSubstr(wrong.substr(0, wrong.find(' '))));
  }
}

// deploy/options.md is written by --help-markdown.
TEST_F(DeploymentTest, TheReferenceOfOptionsSaysWhatTheBinariesSay) {
  std::ifstream file(RINGSERVE_TEST_DATA "/../deploy/options.md");
  std::stringstream reference;
  reference << file.rdbuf();
  for (const char* binary : {"ringserve-server", "ringserve-worker"}) {
    const Output table = OutputOf(Binary(binary) + " --help-markdown");
    EXPECT_EQ(table.exit, 0);
    EXPECT_THAT(reference.str(), HasSubstr(table.text)) << binary;
  }
}

TEST_F(DeploymentTest, TheProbesPortSaysWhetherARequestWouldBeAnsweredAndWhetherTheProcessIs) {
  Start({.workers = 0, .server_flags = {"--health-listen", "127.0.0.1:0"}});
  const std::string health = Logged(cluster_->server(), "health");
  EXPECT_EQ(HealthOf(health), "NOT_SERVING");
  EXPECT_EQ(HealthOf(health, "liveness"), "SERVING");
  cluster_->AddWorker({"--health-listen", "127.0.0.1:0"});
  EXPECT_TRUE(WaitUntil([&] { return HealthOf(health) == "SERVING"; }));
  const std::string worker_health = Logged(cluster_->worker(0), "health");
  EXPECT_EQ(HealthOf(worker_health), "SERVING");
  cluster_->worker(0).Kill();
  EXPECT_TRUE(WaitUntil([&] { return HealthOf(health) == "NOT_SERVING"; }));
  EXPECT_EQ(HealthOf(health, "liveness"), "SERVING");
}

TEST_F(DeploymentTest, AWorkerIsReadyWhileItIsAMemberAndAliveBeforeAndAfter) {
  Start({.workers = 1, .worker_flags = {"--health-listen", "127.0.0.1:0"}});
  const std::string health = Logged(cluster_->worker(0), "health");
  EXPECT_EQ(HealthOf(health), "SERVING");
  cluster_->server().Kill();
  EXPECT_TRUE(WaitUntil([&] { return HealthOf(health) == "NOT_SERVING"; }));
  EXPECT_EQ(HealthOf(health, "liveness"), "SERVING");
  cluster_->RestartServer();
  EXPECT_TRUE(WaitUntil([&] { return HealthOf(health) == "SERVING"; }));
}

TEST_F(DeploymentTest, AServerThatDrainsIsAliveAndNotReady) {
  ClusterOptions options = HeldClusterOptions();
  options.server_flags.insert(options.server_flags.end(), {"--health-listen", "127.0.0.1:0"});
  Start(options);
  const std::string health = Logged(cluster_->server(), "health");
  HeldJob job(*cluster_, Moment::kUploading);
  ASSERT_EQ(job.Await(), "");
  cluster_->server().Signal(SIGTERM);
  EXPECT_TRUE(WaitUntil([&] { return HealthOf(health) == "NOT_SERVING"; }));
  EXPECT_EQ(HealthOf(health, "liveness"), "SERVING");
}

TEST_F(DeploymentTest, TheProbesPortSpeaksPlaintextUnderTlsAndBeyondLoopbackAndServesNothingElse) {
  const std::string make =
      absl::StrCat(RINGSERVE_TEST_DATA "/../deploy/make-certs ", folder_, "/tls server >/dev/null");
  ASSERT_EQ(std::system(make.c_str()), 0) << make;
  const std::string prefix = folder_ + "/tls/";
  const TlsFiles tls = {
      .cert = prefix + "server.crt", .key = prefix + "server.key", .ca = prefix + "ca.crt"};
  Start({.workers = 1,
         .server_flags = {"--health-listen", "0.0.0.0:0"},
         .worker_flags = {"--health-listen", "0.0.0.0:0"},
         .tls = tls,
         .client_tls = tls});
  for (const Process* process : {&cluster_->server(), &cluster_->worker(0)}) {
    const std::string bound = Logged(*process, "health");
    const std::string health = absl::StrCat("127.0.0.1", bound.substr(bound.rfind(':')));
    EXPECT_EQ(HealthOf(health), "SERVING") << process->log();
    const auto client = *Client::Connect({.server = health});
    EXPECT_EQ(client->GetCluster().status().code(), absl::StatusCode::kUnimplemented);
    EXPECT_THAT(ListeningHosts(process->pid()), Contains("127.0.0.1"));
  }
}

TEST_F(DeploymentTest, AProbesPortThatIsTakenIsSaidSo) {
  Start({.workers = 0});
  Spawner spawner;
  for (const char* binary : {"ringserve-server", "ringserve-worker"}) {
    const auto second = spawner.Start(
        Binary(binary),
        {"--die-with-parent", "--listen", "127.0.0.1:0", "--health-listen", cluster_->address()});
    EXPECT_EQ(second->WaitForExit(), 1) << binary;
    EXPECT_THAT(second->log(), AllOf(HasSubstr("--health-listen"), HasSubstr(cluster_->address())));
  }
}

}  // namespace
}  // namespace ringserve::test
