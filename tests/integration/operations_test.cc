// What operators rely on: health, reflection, draining, what binaries link and where they listen.
#include <algorithm>
#include <chrono>
#include <filesystem>
#include <future>
#include <memory>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <google/protobuf/descriptor.pb.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "proto/status.h"
#include "reflection.grpc.pb.h"
#include "tests/integration/from_outside.h"
#include "tests/integration/held_job.h"
#include "tests/integration/process_facts.h"
#include "tests/integration/raw_call.h"
#include "tests/support/cluster.h"

namespace ringserve::test {
namespace {

using std::chrono::milliseconds;
using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

class OperationsTest : public ::testing::Test {
 protected:
  void Start(ClusterOptions options) { cluster_ = std::make_unique<Cluster>(std::move(options)); }
  void TearDown() override {
    if (HasFailure() && cluster_ != nullptr) ADD_FAILURE() << cluster_->Logs();
  }

  std::unique_ptr<Cluster> cluster_;
};

TEST_F(OperationsTest, HealthFollowsTheWorkers) {
  Start({.workers = 0});
  EXPECT_EQ(HealthOf(cluster_->address()), "NOT_SERVING");
  EXPECT_EQ(HealthOf(cluster_->address(), "ringserve.v1.Attention"), "NOT_SERVING");
  cluster_->AddWorker();
  EXPECT_TRUE(WaitUntil([&] { return HealthOf(cluster_->address()) == "SERVING"; }));
  EXPECT_EQ(HealthOf(cluster_->address(), "ringserve.v1.Attention"), "SERVING");
  cluster_->worker(0).Kill();
  EXPECT_TRUE(WaitUntil([&] { return HealthOf(cluster_->address()) == "NOT_SERVING"; }));
}

TEST_F(OperationsTest, AWorkerIsHealthyWhileItIsAMember) {
  Start({.workers = 1});
  const std::string worker = cluster_->client().GetCluster()->workers(0).address();
  EXPECT_EQ(HealthOf(worker), "SERVING");
  cluster_->server().Kill();
  EXPECT_TRUE(WaitUntil([&] { return HealthOf(worker) == "NOT_SERVING"; }));
}

TEST_F(OperationsTest, ReflectionListsAndDescribesTheServices) {
  Start({.workers = 0});
  using grpc::reflection::v1alpha::ServerReflection;
  const auto stub = ServerReflection::NewStub(NewChannel(cluster_->address()));
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + kPatience);
  const auto stream = stub->ServerReflectionInfo(&context);

  grpc::reflection::v1alpha::ServerReflectionRequest request;
  grpc::reflection::v1alpha::ServerReflectionResponse response;
  request.set_list_services("*");
  ASSERT_TRUE(stream->Write(request) && stream->Read(&response));
  std::vector<std::string> names;
  for (const auto& service : response.list_services_response().service()) {
    names.push_back(service.name());
  }
  EXPECT_THAT(names, Contains("ringserve.v1.Attention"));
  EXPECT_THAT(names, Contains("grpc.health.v1.Health"));

  request.set_file_containing_symbol("ringserve.v1.Attention");
  ASSERT_TRUE(stream->Write(request) && stream->Read(&response));
  ASSERT_GE(response.file_descriptor_response().file_descriptor_proto_size(), 1);
  google::protobuf::FileDescriptorProto file;
  ASSERT_TRUE(file.ParseFromString(response.file_descriptor_response().file_descriptor_proto(0)));
  EXPECT_EQ(file.package(), "ringserve.v1");
  ASSERT_EQ(file.service_size(), 1);
  std::vector<std::string> methods;
  for (const auto& method : file.service(0).method()) methods.push_back(method.name());
  EXPECT_THAT(methods, ElementsAre("Attend", "AttendBackward", "Plan", "GetCluster"));

  request.set_file_containing_symbol("grpc.health.v1.Health");
  ASSERT_TRUE(stream->Write(request) && stream->Read(&response));
  // The service answers each question of a stream with the files of the questions before, too.
  ASSERT_GE(response.file_descriptor_response().file_descriptor_proto_size(), 1);
  ASSERT_TRUE(
      file.ParseFromString(*response.file_descriptor_response().file_descriptor_proto().rbegin()));
  EXPECT_EQ(file.name(), "grpc/health/v1/health.proto");
}

TEST_F(OperationsTest, OnSigtermTheServerFinishesWhatRunsAndRefusesTheNew) {
  Start(HeldClusterOptions());
  const Request& request = RequestFor(Moment::kStep0);
  auto answer = std::async(std::launch::async, [&] {
    return request.AskOf(cluster_->client(), request.Named("last", 3), {.max_attempts = 1});
  });
  ASSERT_TRUE(cluster_->server().WaitForLogLine({"state=running ", "request=last"}));
  const auto channel = NewChannel(cluster_->address());  // that is open before
  ASSERT_TRUE(channel->WaitForConnected(std::chrono::system_clock::now() + kPatience));
  cluster_->server().Signal(SIGTERM);
  ASSERT_TRUE(cluster_->server().WaitForLog("draining signal=").has_value());
  EXPECT_TRUE(WaitUntil([&] { return HealthOf(cluster_->address()) != "SERVING"; }));

  RawCall late(channel);
  late.SendHeader(SmallRequest().Named("late", 3));
  const absl::Status refusal = late.Finish();
  EXPECT_EQ(refusal.code(), absl::StatusCode::kUnavailable) << refusal;
  EXPECT_THAT(std::string(refusal.message()), HasSubstr("draining"));

  const absl::StatusOr<Answer> got = answer.get();
  ASSERT_TRUE(got.ok()) << got.status();
  EXPECT_EQ(request.WhatIsWrong(*got), "");
  EXPECT_EQ(cluster_->server().WaitForExit(), 0);
}

TEST_F(OperationsTest, DrainingIsBounded) {
  ClusterOptions options = HeldClusterOptions();
  options.server_flags = {"--drain-s", "1"};
  Start(options);
  HeldJob job(*cluster_, Moment::kUploading);
  ASSERT_EQ(job.Await(), "");
  cluster_->server().Signal(SIGTERM);
  const absl::Status status = job.call().Finish();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
  const std::optional<int> exit = cluster_->server().WaitForExit(milliseconds(15'000) * kSlowness);
  ASSERT_TRUE(exit.has_value()) << "the server does not end";
  EXPECT_NE(*exit, 0) << "a drain that broke a job off must not look like one that did not";
}

TEST_F(OperationsTest, ASecondSigtermEndsTheServerAtOnce) {
  Start(HeldClusterOptions());
  HeldJob job(*cluster_, Moment::kUploading);
  ASSERT_EQ(job.Await(), "");
  cluster_->server().Signal(SIGTERM);
  ASSERT_TRUE(cluster_->server().WaitForLog("draining signal=").has_value());
  cluster_->server().Signal(SIGTERM);
  EXPECT_TRUE(cluster_->server().WaitForExit(milliseconds(10'000) * kSlowness).has_value());
}

TEST_F(OperationsTest, OnSigtermAWorkerFinishesItsJobAndLeaves) {
  Start(HeldClusterOptions());
  const Request& request = RequestFor(Moment::kStep0);
  auto answer = std::async(std::launch::async, [&] {
    return request.AskOf(cluster_->client(), request.Named("farewell", 3), {.max_attempts = 1});
  });
  ASSERT_TRUE(cluster_->server().WaitForLogLine({"state=running ", "request=farewell"}));
  cluster_->worker(1).Signal(SIGTERM);
  const absl::StatusOr<Answer> got = answer.get();
  ASSERT_TRUE(got.ok()) << got.status();
  EXPECT_EQ(request.WhatIsWrong(*got), "");
  EXPECT_EQ(cluster_->worker(1).WaitForExit(), 0);
  EXPECT_TRUE(cluster_->AwaitWorkers(2));
  const absl::StatusOr<Answer> next =
      SmallRequest().AskOf(cluster_->client(), SmallRequest().Named("next", 2));
  ASSERT_TRUE(next.ok()) << next.status();
  EXPECT_EQ(SmallRequest().WhatIsWrong(*next), "");
}

TEST_F(OperationsTest, NothingListensBeyondLoopbackByDefault) {
  Start({.workers = 1});
  for (const Process* process : {&cluster_->server(), &cluster_->worker(0)}) {
    const std::vector<std::string> hosts = ListeningHosts(process->pid());
    EXPECT_FALSE(hosts.empty()) << process->name();
    for (const std::string& host : hosts) {
      EXPECT_TRUE(host == "::1" || host.rfind("127.", 0) == 0)
          << process->name() << " listens on " << host;
    }
  }
}

TEST_F(OperationsTest, AListenerBeyondLoopbackNeedsTlsOrASaidRisk) {
  Spawner spawner;
  for (const char* binary : {"ringserve-server", "ringserve-worker"}) {
    const std::vector<std::string> flags = {"--die-with-parent", "--listen", "0.0.0.0:0"};
    const auto refused = spawner.Start(Binary(binary), flags);
    const std::optional<int> exit = refused->WaitForExit();
    ASSERT_TRUE(exit.has_value()) << binary;
    EXPECT_GT(*exit, 0) << binary;
    EXPECT_TRUE(WaitUntil([&] { return refused->log().find("--insecure") != std::string::npos; }))
        << refused->log();
  }
  const auto open = spawner.Start(Binary("ringserve-server"),
                                  {"--die-with-parent", "--listen", "0.0.0.0:0", "--insecure"});
  EXPECT_TRUE(open->WaitForAddress().has_value()) << open->log();
}

TEST_F(OperationsTest, UnixSocketsServeEveryRoadWhereAskedForAndGoWithTheirProcess) {
  char folder[] = "/tmp/ringserve-unix-XXXXXX";
  ASSERT_NE(mkdtemp(folder), nullptr);
  const auto socket = [&](const std::string& name) { return absl::StrCat(folder, "/", name); };
  Spawner spawner;
  std::vector<std::unique_ptr<Process>> processes;
  processes.push_back(
      spawner.Start(Binary("ringserve-server"),
                    {"--die-with-parent", "--listen", absl::StrCat("unix:", socket("server"))}));
  ASSERT_TRUE(processes[0]->WaitForAddress().has_value()) << processes[0]->log();
  for (const char* name : {"worker-1", "worker-2"}) {
    processes.push_back(spawner.Start(Binary("ringserve-worker"),
                                      {"--die-with-parent", "--threads", "1", "--coordinator",
                                       absl::StrCat("unix:", socket("server")), "--listen",
                                       absl::StrCat("unix:", socket(name))}));
  }
  const auto client = *Client::Connect({.server = absl::StrCat("unix:", socket("server"))});
  ASSERT_TRUE(WaitUntil([&] {
    const auto cluster = client->GetCluster();
    return cluster.ok() && cluster->workers_size() == 2 && !cluster->epoch().empty();
  }));
  const absl::StatusOr<Answer> answer =
      SmallRequest().AskOf(*client, SmallRequest().Named("unix", 2));
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_EQ(SmallRequest().WhatIsWrong(*answer), "");
  EXPECT_GT(answer->statistics.ranks(0).bytes_sent(), 0u);
  for (auto process = processes.rbegin(); process != processes.rend(); ++process) {
    EXPECT_THAT(ListeningHosts((*process)->pid()), IsEmpty());
    (*process)->Signal(SIGTERM);
    EXPECT_EQ((*process)->WaitForExit(), 0);
  }
  EXPECT_TRUE(std::filesystem::is_empty(folder));
  std::filesystem::remove_all(folder);
}

TEST_F(OperationsTest, AbstractUnixSocketsServeEveryRoad) {
  const auto socket = [](const std::string& name) {
    return absl::StrCat("unix-abstract:ringserve-", getpid(), "-", name);
  };
  Spawner spawner;
  const auto server = spawner.Start(Binary("ringserve-server"),
                                    {"--die-with-parent", "--listen", socket("server")});
  ASSERT_TRUE(server->WaitForAddress().has_value()) << server->log();
  std::vector<std::unique_ptr<Process>> workers;
  for (const char* name : {"worker-1", "worker-2"}) {
    workers.push_back(spawner.Start(Binary("ringserve-worker"),
                                    {"--die-with-parent", "--threads", "1", "--coordinator",
                                     socket("server"), "--listen", socket(name)}));
  }
  const auto client = *Client::Connect({.server = socket("server")});
  ASSERT_TRUE(WaitUntil([&] {
    const auto cluster = client->GetCluster();
    return cluster.ok() && cluster->workers_size() == 2 && !cluster->epoch().empty();
  })) << workers[0]->log();
  const absl::StatusOr<Answer> answer =
      SmallRequest().AskOf(*client, SmallRequest().Named("abstract", 2));
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_EQ(SmallRequest().WhatIsWrong(*answer), "");
}

TEST_F(OperationsTest, AnAddressInUseIsSaidSo) {
  Start({.workers = 0});
  Spawner spawner;
  const auto second = spawner.Start(Binary("ringserve-server"),
                                    {"--die-with-parent", "--listen", cluster_->address()});
  const std::optional<int> exit = second->WaitForExit();
  ASSERT_TRUE(exit.has_value());
  EXPECT_GT(*exit, 0);
  EXPECT_TRUE(WaitUntil([&] {
    return second->log().find(cluster_->address()) != std::string::npos;
  })) << second->log();
}

TEST_F(OperationsTest, TheFileLimitIsRaised) {
  Start({.workers = 0});
  // "Max open files   SOFT   HARD   files"
  const Output limits = OutputOf(absl::StrCat("awk '/^Max open files/ { print ($4 == $5) }' /proc/",
                                              cluster_->server().pid(), "/limits"));
  EXPECT_EQ(limits.text, "1\n");
}

TEST_F(OperationsTest, OptionsComeFromTheEnvironmentToo) {
  Spawner spawner;
  const auto server =
      spawner.Start(Binary("ringserve-server"), {"--die-with-parent", "--listen", "127.0.0.1:0"},
                    {{"RINGSERVE_MAX_QUEUED_JOBS", "7"}, {"RINGSERVE_LOG_FORMAT", "json"}});
  const std::optional<std::string> address = server->WaitForAddress();
  ASSERT_TRUE(address.has_value()) << server->log();
  const auto client = *Client::Connect({.server = *address});
  EXPECT_EQ(client->GetCluster()->limits().max_queued_jobs(), 7);
  EXPECT_TRUE(server->WaitForLog("{").has_value()) << server->log();
}

TEST_F(OperationsTest, BinariesSayTheirVersionAndRefuseWhatTheyDoNotKnow) {
  for (const char* binary : {"ringserve-server", "ringserve-worker"}) {
    const Output version = OutputOf(Binary(binary) + " --version");
    EXPECT_EQ(version.exit, 0);
    EXPECT_THAT(version.text, HasSubstr(binary));
    const Output unknown = OutputOf(Binary(binary) + " --no-such-option");
    EXPECT_NE(unknown.exit, 0);
    EXPECT_THAT(unknown.text, HasSubstr("--no-such-option"));
  }
}

TEST_F(OperationsTest, ServerAndClientLinkNoLibTorch) {
  for (const char* binary : {"ringserve-server", "ringctl"}) {
    const Output libraries = OutputOf("ldd " + Binary(binary));
    EXPECT_EQ(libraries.exit, 0) << libraries.text;
    EXPECT_THAT(libraries.text, HasSubstr("libgrpc"));
    for (const char* name : {"libtorch", "libc10", "libcuda"}) {
      EXPECT_THAT(libraries.text, Not(HasSubstr(name))) << binary;
    }
  }
  EXPECT_THAT(OutputOf("ldd " + Binary("ringserve-worker")).text, HasSubstr("libtorch_cpu"));
}

}  // namespace
}  // namespace ringserve::test
