// `ringctl plan` and `ringctl status`, the program, against a server that says little; the whole is
// tested in tests/integration.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "client/ringctl/command.h"
#include "tests/client/fake_attention.h"
#include "tests/client/ringctl/ringctl_process.h"
#include "tests/client/ringctl/scratch_folder.h"

namespace ringserve {
namespace {

using test::FakeAttention;
using test::RunResult;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

grpc::Status Nothing(FakeAttention::Stream&, grpc::ServerContext&, int) { return grpc::Status::OK; }

class PlanStatus : public ::testing::Test {
 protected:
  RunResult Ringctl(std::vector<std::string> arguments) {
    return test::RunRingctl(spawner_, server_.address(), std::move(arguments));
  }
  FakeAttention server_{Nothing};
  test::Spawner spawner_;
};

TEST_F(PlanStatus, PlanAsksTheServer) {
  const RunResult run = Ringctl(
      {"plan", "--q-heads", "8", "--q-len", "100", "--head-dim", "64", "--workers", "5", "--json"});
  ASSERT_EQ(run.exit, kExitOk) << run.err;
  const nlohmann::json json = run.Json();
  EXPECT_EQ(json["workers"], 5);
  for (const char* key :
       {"layout", "work", "bytes", "balancer", "rotate", "imbalance", "imbalance_total",
        "imbalance_is_bound", "steps", "peak_bytes", "estimated_seconds", "reason"}) {
    EXPECT_TRUE(json.contains(key)) << key;
  }
}

TEST_F(PlanStatus, PlanAsksForThatOfTheGradients) {
  const std::vector<std::string> forward = {"plan", "--q-heads",  "8",  "--q-len",
                                            "100",  "--head-dim", "64", "--json"};
  std::vector<std::string> backward = forward;
  backward.push_back("--backward");
  EXPECT_EQ(Ringctl(forward).Json()["reason"], "");
  EXPECT_EQ(Ringctl(backward).Json()["reason"], "backward");
  backward.insert(backward.end(), {"--picture", "plan.svg"});
  EXPECT_EQ(Ringctl(backward).exit, kExitUsage);
}

TEST_F(PlanStatus, PlanSaysWhichDimIsMissingOrWrong) {
  struct Wrong {
    std::vector<std::string> arguments;
    const char* says;
  };
  for (const Wrong& wrong : {
           Wrong{{"plan"}, "--q-heads is missing"},
           Wrong{{"plan", "--q-heads", "8", "--head-dim", "64"}, "--q-len is missing"},
           Wrong{{"plan", "--q-heads", "8", "--q-len", "64"}, "--head-dim is missing"},
           Wrong{{"plan", "--q-len", "0"}, "--q-len"},
           Wrong{{"plan", "--batch", "-3"}, "-3"},
           Wrong{{"plan", "--dtype", "i8"}, "i8"},
           Wrong{{"plan", "in.safetensors", "--q-len", "5"}, "in.safetensors"},
           Wrong{{"plan", "/absent.safetensors"}, "/absent.safetensors"},
       }) {
    const RunResult run = Ringctl(wrong.arguments);
    EXPECT_EQ(run.exit, kExitUsage) << run.err;
    EXPECT_THAT(run.err, HasSubstr(wrong.says));
    EXPECT_THAT(run.out, IsEmpty());
  }
}

TEST_F(PlanStatus, PlanDrawsAPictureBesideWhatItSays) {
  const test::ScratchFolder folder;
  const std::string picture = folder.Path("plan.svg");
  const RunResult run = Ringctl({"plan", "--q-heads", "8", "--q-len", "100", "--head-dim", "64",
                                 "--workers", "5", "--json", "--picture", picture});
  ASSERT_EQ(run.exit, kExitOk) << run.err;
  EXPECT_EQ(run.Json()["workers"], 5);
  EXPECT_THAT(folder.Read("plan.svg"), HasSubstr("5 workers"));
}

TEST_F(PlanStatus, PlanSaysWhyAPictureCannotBeDrawnAndLeavesNoHalfFile) {
  const test::ScratchFolder folder;
  for (const char* name : {"plan.gif", "absent/plan.png"}) {
    const RunResult run = Ringctl({"plan", "--q-heads", "8", "--q-len", "100", "--head-dim", "64",
                                   "--picture", folder.Path(name)});
    EXPECT_EQ(run.exit, kExitUsage) << run.err;
    EXPECT_THAT(run.err, HasSubstr(folder.Path(name)));
    EXPECT_THAT(run.out, IsEmpty());
  }
  EXPECT_THAT(folder.Names(), IsEmpty());
}

TEST_F(PlanStatus, StatusIsClearWhereThereAreNoWorkers) {
  const RunResult run = Ringctl({"status"});
  EXPECT_EQ(run.exit, kExitOk) << run.err;
  EXPECT_THAT(run.out, AllOf(HasSubstr(server_.address()), HasSubstr("version fake"),
                             HasSubstr("no workers"), HasSubstr("ringctl up")));
  const RunResult json = Ringctl({"status", "--json"});
  EXPECT_EQ(json.exit, kExitOk) << json.err;
  EXPECT_EQ(json.Json()["version"], "fake");
  EXPECT_EQ(json.Json()["workers"], nlohmann::json::array());
}

TEST_F(PlanStatus, StatusShowsTheGpuOfEachWorkerWhereThereAreAny) {
  v1::GetClusterResponse cluster;
  v1::Worker& worker = *cluster.add_workers();
  worker.set_id("w1");
  worker.set_device("cpu");
  worker.set_libtorch("2.15.0");
  server_.SetCluster(cluster);
  EXPECT_THAT(Ringctl({"status"}).out,
              AllOf(HasSubstr("LIBTORCH\n"), HasSubstr("2.15.0\n"), Not(HasSubstr("NCCL"))));
  EXPECT_EQ(Ringctl({"status", "--json"}).Json()["workers"][0]["nccl"], "");
  worker.set_device("cuda:0");
  worker.set_memory_bytes(uint64_t{128} << 30);
  worker.set_device_name("NVIDIA H200");
  worker.set_driver("580.65.06");
  worker.set_cuda("13.2");
  worker.set_nccl("2.30.7");
  server_.SetCluster(cluster);
  EXPECT_THAT(Ringctl({"status"}).out,
              AllOf(HasSubstr("LIBTORCH  GPU          DRIVER     CUDA  NCCL\n"),
                    HasSubstr("2.15.0    NVIDIA H200  580.65.06  13.2  2.30.7\n"),
                    HasSubstr("128.0 GiB"), HasSubstr("cuda:0")));
  const nlohmann::json json = Ringctl({"status", "--json"}).Json()["workers"][0];
  EXPECT_EQ(json["device_name"], "NVIDIA H200");
  EXPECT_EQ(json["driver"], "580.65.06");
  EXPECT_EQ(json["cuda"], "13.2");
  EXPECT_EQ(json["nccl"], "2.30.7");
}

TEST_F(PlanStatus, BothSayThatThereIsNoServer) {
  server_.Stop();
  for (const std::vector<std::string>& arguments :
       {std::vector<std::string>{"status"},
        {"plan", "--q-heads", "8", "--q-len", "100", "--head-dim", "64"}}) {
    const RunResult run = Ringctl(arguments);
    EXPECT_EQ(run.exit, kExitUnavailable);
    EXPECT_THAT(run.err, HasSubstr(server_.address()));
  }
}

}  // namespace
}  // namespace ringserve
