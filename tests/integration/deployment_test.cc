// What a platform relies on: options from files, the ports for probes and for metrics.
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
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

TEST_F(DeploymentTest, TheConfigurationInTheManifestsIsAccepted) {
  const std::string manifests = RINGSERVE_TEST_DATA "/../deploy/k8s/";
  for (const std::string& command :
       {Binary("ringserve-server") + " --config " + manifests + "base/server.yaml",
        Binary("ringserve-worker") + " --advertise worker-0.worker.ringserve.svc:7071 --config " +
            manifests + "overlays/cpu/worker-options.yaml"}) {
    const Output printed = OutputOf(command + " --print-config");
    EXPECT_EQ(printed.exit, 0) << command << printed.text;
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
    EXPECT_NE(reference.str().find(table.text), std::string::npos) << binary << table.text;
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

TEST_F(DeploymentTest, TheMetricsCountRequestsAndTheBytesOfTheirPlans) {
  Start({.workers = 2,
         .server_flags = {"--metrics-listen", "127.0.0.1:0"},
         .worker_flags = {"--metrics-listen", "127.0.0.1:0"}});
  const std::string server = Logged(cluster_->server(), "metrics");
  ASSERT_TRUE(cluster_->AwaitWorkers(2));
  const std::map<std::string, double> before = Scrape(server);
  EXPECT_EQ(before.at("ringserve_workers"), 2);
  EXPECT_EQ(before.at("ringserve_serving"), 1);
  EXPECT_EQ(before.at("ringserve_requests_total{code=\"OK\",method=\"attend\"}"), 0);

  uint64_t up = 0, between = 0, down = 0;
  constexpr int kRequests = 3;
  for (int i = 0; i < kRequests; ++i) {
    v1::AttendHeader header = MakeHeader(MakeSpec(64, 96, 2, 8, 8), "", 2);
    header.mutable_options()->set_rotate(v1::ROTATE_METHOD_ALL_TO_ALL);
    header.mutable_options()->set_balancer(v1::BALANCER_CONTIGUOUS);
    const absl::StatusOr<Answer> answer = Request(header, i).AskOf(cluster_->client());
    ASSERT_TRUE(answer.ok()) << answer.status();
    up += answer->statistics.upload_bytes();
    down += answer->statistics.download_bytes();
    for (const uint64_t bytes : answer->statistics.plan().bytes()) between += bytes;
  }
  const absl::StatusOr<Answer> refused = Request(MakeHeader(MakeSpec(8, 8, 2, 8, 8), "", 3), 1)
                                             .AskOf(cluster_->client(), {.max_attempts = 1});
  ASSERT_EQ(refused.status().code(), absl::StatusCode::kUnavailable) << refused.status();

  // A request is counted when the last of it is gone, a moment after its answer.
  std::map<std::string, double> after;
  EXPECT_TRUE(WaitUntil([&] {
    after = Scrape(server);
    return after["ringserve_requests_total{code=\"OK\",method=\"attend\"}"] == kRequests &&
           after["ringserve_requests_total{code=\"UNAVAILABLE\",method=\"attend\"}"] == 1;
  }));
  EXPECT_GT(between, 0u);
  EXPECT_EQ(after["ringserve_tensor_bytes_total{road=\"upload\"}"], up);
  EXPECT_EQ(after["ringserve_tensor_bytes_total{road=\"exchange\"}"], between);
  EXPECT_EQ(after["ringserve_tensor_bytes_total{road=\"download\"}"], down);
  EXPECT_EQ(
      after["ringserve_planned_requests_total{balancer=\"contiguous\",rotate=\"all-to-all\"}"],
      kRequests);
  EXPECT_EQ(after["ringserve_request_imbalance_ratio_count"], kRequests);
  EXPECT_EQ(after["ringserve_request_phase_seconds_count{phase=\"compute\"}"], kRequests);
  EXPECT_GT(after["ringserve_request_phase_seconds_sum{phase=\"total\"}"], 0);
  EXPECT_EQ(after["ringserve_queued_requests"], 0);
  EXPECT_EQ(after["ringserve_in_flight_bytes"], 0);
  EXPECT_GE(after["ringserve_epochs_total"], 1);
  EXPECT_EQ(after["ringserve_build_info{component=\"server\",version=\"" RINGSERVE_VERSION "\"}"],
            1);

  double sent = 0, received = 0, jobs = 0;
  for (int i = 0; i < 2; ++i) {
    std::map<std::string, double> worker = Scrape(Logged(cluster_->worker(i), "metrics"));
    sent += worker["ringserve_worker_exchange_bytes_total{direction=\"sent\"}"];
    received += worker["ringserve_worker_exchange_bytes_total{direction=\"received\"}"];
    jobs += worker["ringserve_worker_jobs_total{code=\"OK\"}"];
    EXPECT_EQ(worker["ringserve_worker_joined"], 1);
    EXPECT_EQ(worker["ringserve_worker_memberships_total"], 1);
    EXPECT_GT(worker["ringserve_worker_memory_bytes"], 0);
  }
  EXPECT_EQ(sent, between);
  EXPECT_EQ(received, between);
  EXPECT_EQ(jobs, 2 * kRequests);
}

TEST_F(DeploymentTest, TheMetricsTellMethodsApart) {
  Start({.workers = 1, .server_flags = {"--metrics-listen", "127.0.0.1:0"}});
  const std::string server = Logged(cluster_->server(), "metrics");
  const auto count = [&](const std::string& method, const std::string& code) {
    return Scrape(server)[absl::StrCat("ringserve_requests_total{code=\"", code, "\",method=\"",
                                       method, "\"}")];
  };
  const double views = count("get_cluster", "OK");
  ASSERT_TRUE(cluster_->client().GetCluster().ok());
  EXPECT_EQ(count("get_cluster", "OK"), views + 1);
  v1::PlanRequest plan;
  *plan.mutable_spec() = MakeSpec(8, 8, 2, 8, 8);
  ASSERT_TRUE(cluster_->client().Plan(plan).ok());
  plan.mutable_spec()->set_batch(-1);
  ASSERT_FALSE(cluster_->client().Plan(plan).ok());
  EXPECT_EQ(count("plan", "OK"), 1);
  EXPECT_EQ(count("plan", "INVALID_ARGUMENT"), 1);
  EXPECT_EQ(count("attend", "OK") + count("attend_backward", "OK"), 0);
}

TEST_F(DeploymentTest, TheMetricsCountWorkersThatWereLostAndNotThoseThatLeft) {
  Start({.workers = 3, .server_flags = {"--metrics-listen", "127.0.0.1:0"}});
  const std::string server = Logged(cluster_->server(), "metrics");
  cluster_->worker(0).Signal(SIGTERM);
  EXPECT_TRUE(cluster_->AwaitWorkers(2));
  EXPECT_EQ(Scrape(server)["ringserve_workers_lost_total"], 0);
  cluster_->worker(1).Kill();
  EXPECT_TRUE(WaitUntil([&] { return Scrape(server)["ringserve_workers"] == 1; }));
  EXPECT_EQ(Scrape(server)["ringserve_workers_lost_total"], 1);
  EXPECT_EQ(Scrape(server)["ringserve_workers_joined_total"], 3);
  cluster_->worker(2).Signal(SIGTERM);
  EXPECT_TRUE(WaitUntil([&] { return Scrape(server)["ringserve_serving"] == 0; }));
}

TEST_F(DeploymentTest, TheMetricsPortServesNothingElse) {
  Start({.workers = 0, .server_flags = {"--metrics-listen", "127.0.0.1:0"}});
  const std::string server = Logged(cluster_->server(), "metrics");
  EXPECT_THAT(Get(server, "/metrics"), HasSubstr("200 OK"));
  EXPECT_THAT(Get(server, "/"), HasSubstr("404"));
  EXPECT_THAT(Get(server, "/etc/passwd"), HasSubstr("404"));
}

TEST_F(DeploymentTest, AMetricsPortThatIsTakenOrNoTcpIsSaidSo) {
  Start({.workers = 0});
  for (const char* binary : {"ringserve-server", "ringserve-worker"}) {
    const std::string command = Binary(binary) + " --listen 127.0.0.1:0 --metrics-listen ";
    const Output taken = OutputOf(command + cluster_->address());
    EXPECT_EQ(taken.exit, 1) << binary;
    EXPECT_THAT(taken.text, AllOf(HasSubstr("--metrics-listen"), HasSubstr(cluster_->address())));
    const Output unix_socket = OutputOf(command + "unix:/tmp/socket");
    EXPECT_EQ(unix_socket.exit, 2) << binary;
    EXPECT_THAT(unix_socket.text, HasSubstr("--metrics-listen: is 'unix:/tmp/socket'"));
  }
}

TEST_F(DeploymentTest, RingctlWatchesTheClusterAlsoWhileItsServerIsAway) {
  Start({.workers = 0});
  Spawner spawner;
  const auto watch = spawner.Start(Binary("ringctl"), {"--server", cluster_->address(), "status",
                                                       "--watch", "--interval", "0.02"});
  const auto shows = [&](const std::string& words, size_t from) {
    return WaitUntil([&] { return watch->output().find(words, from) != std::string::npos; });
  };
  EXPECT_TRUE(shows("no workers", 0));
  cluster_->AddWorker();
  EXPECT_TRUE(shows("idle", 0));
  cluster_->server().Kill();
  EXPECT_TRUE(shows("does not answer: UNAVAILABLE", 0));
  const size_t away = watch->output().size();
  cluster_->RestartServer();
  EXPECT_TRUE(shows("idle", away));
  watch->Signal(SIGTERM);
  EXPECT_TRUE(watch->WaitForExit().has_value());
}

// Every ringserve_... in `text`, a histogram's series by the name of the histogram.
std::set<std::string> MetricNames(absl::string_view text) {
  constexpr absl::string_view kPrefix = "ringserve_";
  std::set<std::string> names;
  for (size_t at = text.find(kPrefix); at != text.npos; at = text.find(kPrefix, at + 1)) {
    absl::string_view name = text.substr(at);
    const auto end = std::find_if_not(name.begin(), name.end(),
                                      [](char c) { return absl::ascii_islower(c) || c == '_'; });
    name = name.substr(0, end - name.begin());
    for (const absl::string_view suffix : {"_bucket", "_sum", "_count"}) {
      if (absl::ConsumeSuffix(&name, suffix)) break;
    }
    if (name.size() > kPrefix.size()) names.emplace(name);
  }
  return names;
}

// What alerts and dashboard ask for is there to be scraped.
TEST_F(DeploymentTest, AlertsAndDashboardNameMetricsThatExist) {
  Start({.workers = 1,
         .server_flags = {"--metrics-listen", "127.0.0.1:0"},
         .worker_flags = {"--metrics-listen", "127.0.0.1:0"}});
  const std::string served = Get(Logged(cluster_->server(), "metrics"), "/metrics") +
                             Get(Logged(cluster_->worker(0), "metrics"), "/metrics");
  for (const char* path : {"alerts.yaml", "ringserve.json"}) {
    std::ifstream file(std::string(RINGSERVE_TEST_DATA "/../deploy/k8s/components/monitoring/") +
                       path);
    const std::string text(std::istreambuf_iterator<char>(file), {});
    const std::set<std::string> names = MetricNames(text);
    EXPECT_GT(names.size(), 5u) << path;
    for (const std::string& metric : names) {
      EXPECT_NE(served.find("# TYPE " + metric + " "), std::string::npos) << path << metric;
    }
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
