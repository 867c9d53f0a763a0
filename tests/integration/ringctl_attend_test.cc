// `ringctl attend`, `plan` and `status` as a user runs them, against a real cluster of three
// workers. Whether an answer is right is for --verify to say, which is tested for itself
// (tests/client/ringctl/verify_test.cc).
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "client/ringctl/command.h"
#include "client/ringctl/names.h"
#include "client/ringctl/safetensors.h"
#include "tests/client/ringctl/input_file.h"
#include "tests/client/ringctl/ringctl_process.h"
#include "tests/client/ringctl/scratch_folder.h"
#include "tests/support/cluster_fixture.h"

namespace ringserve {
namespace {

using test::RunResult;
using ::testing::AllOf;
using ::testing::Contains;
using ::testing::HasSubstr;

constexpr int kWorkers = 3;

v1::AttentionSpec Spec(v1::DType dtype, v1::TensorLayout layout, int64_t q_len, int64_t kv_len) {
  v1::AttentionSpec spec;
  spec.set_batch(1);
  spec.set_q_heads(8);
  spec.set_kv_heads(2);
  spec.set_q_len(q_len);
  spec.set_kv_len(kv_len);
  spec.set_head_dim(64);
  spec.set_value_dim(64);
  spec.set_dtype(dtype);
  spec.set_tensor_layout(layout);
  return spec;
}

std::vector<v1::DType> DTypes() {
  return {v1::DTYPE_F32, v1::DTYPE_F64, v1::DTYPE_BF16, v1::DTYPE_F16};
}

class RingctlAttend : public test::ClusterTest {
 protected:
  static void SetUpTestSuite() { Start({.workers = kWorkers}); }

  RunResult Ringctl(std::vector<std::string> arguments) {
    return test::RunRingctl(spawner_, cluster_->address(), std::move(arguments));
  }

  std::string Input(const v1::AttentionSpec& spec) {
    const std::string path = folder_.Path("in.safetensors");
    test::WriteInputFile(path, spec, 11);
    return path;
  }

  // Runs `attend` over `input`, expects a verified answer, and returns what it says in JSON.
  nlohmann::json Attend(const std::string& input, const v1::AttentionSpec& spec,
                        std::vector<std::string> arguments) {
    const std::string layout = spec.tensor_layout() == v1::TENSOR_LAYOUT_BSHD ? "bshd" : "bhsd";
    arguments.insert(arguments.begin(), {"attend", input, "--out", folder_.Path("out.safetensors"),
                                         "--layout", layout, "--verify", "--json"});
    const RunResult run = Ringctl(arguments);
    EXPECT_EQ(run.exit, kExitOk) << run.err << run.out;
    const nlohmann::json json = run.Json();
    if (run.exit != kExitOk || json.is_discarded()) return {};
    EXPECT_EQ(json["verify"]["ok"], true);
    EXPECT_GE(json["verify"]["rows"],
              spec.batch() * spec.q_heads() * std::min<int64_t>(64, spec.q_len()));
    EXPECT_EQ(json["attempts"], 1);
    EXPECT_EQ(json["work"].size(), json["workers"]);
    EXPECT_EQ(json["bytes"].size(), json["workers"]);
    EXPECT_EQ(json["layout"]["q"][0].size(), json["workers"]);
    return json;
  }

  // With 1, 2 and 3 workers.
  void AttendWithEveryNumberOfWorkers(const v1::AttentionSpec& spec,
                                      const std::vector<std::string>& arguments) {
    const std::string input = Input(spec);
    for (int workers = 1; workers <= kWorkers; ++workers) {
      SCOPED_TRACE(absl::StrCat(spec.ShortDebugString(), ", workers ", workers));
      std::vector<std::string> all = arguments;
      all.insert(all.end(), {"--workers", absl::StrCat(workers)});
      const nlohmann::json json = Attend(input, spec, all);
      ASSERT_FALSE(HasFailure());
      EXPECT_EQ(json["workers"], workers);
    }
  }

  test::ScratchFolder folder_;
  test::Spawner spawner_;
};

TEST_F(RingctlAttend, TakesBiasSlopesAndSinksFromFilesAndVerifiesThem) {
  v1::AttentionSpec spec = Spec(v1::DTYPE_BF16, v1::TENSOR_LAYOUT_BSHD, 200, 300);
  spec.mutable_bias()->set_per_head(true);
  spec.set_alibi_slopes(true);
  spec.set_sink_logits(true);
  const std::string in = folder_.Path("in.safetensors");
  AttendWithEveryNumberOfWorkers(spec, {"--mask", "causal", "--bottom-right", "--alibi", in,
                                        "--sink-logits", in, "--bias", in});
  AttendWithEveryNumberOfWorkers(spec, {"--sink-logits", in, "--lse-without-sinks"});
  const RunResult plan = Ringctl({"plan", in, "--layout", "bshd", "--bias", in, "--alibi", in});
  EXPECT_EQ(plan.exit, kExitOk) << plan.err;
  EXPECT_THAT(plan.out, HasSubstr("bias [1, 8, 200, 300]"));
  EXPECT_THAT(plan.out, HasSubstr("ALiBi"));
  const std::string plain = folder_.Path("plain.safetensors");
  test::WriteInputFile(plain, Spec(v1::DTYPE_BF16, v1::TENSOR_LAYOUT_BSHD, 200, 300), 11);
  const RunResult wrong =
      Ringctl({"attend", in, "--out", folder_.Path("out"), "--layout", "bshd", "--alibi", plain});
  EXPECT_NE(wrong.exit, kExitOk);
  EXPECT_THAT(wrong.err, HasSubstr("alibi_slopes"));
}

class RingctlAttendEveryType : public RingctlAttend,
                               public ::testing::WithParamInterface<v1::DType> {};
INSTANTIATE_TEST_SUITE_P(Types, RingctlAttendEveryType, ::testing::ValuesIn(DTypes()),
                         [](const auto& info) { return NameOf(info.param); });

TEST_P(RingctlAttendEveryType, IsRightForAnyLengthLayoutAndNumberOfWorkers) {
  for (const v1::TensorLayout layout : {v1::TENSOR_LAYOUT_BHSD, v1::TENSOR_LAYOUT_BSHD}) {
    for (const int64_t length : {1, 2, 7, 1000}) {
      AttendWithEveryNumberOfWorkers(Spec(GetParam(), layout, length, length),
                                     {"--mask", "causal"});
    }
  }
}

TEST_P(RingctlAttendEveryType, IsRightForALengthThatIsNoMultipleOfAnything) {
  AttendWithEveryNumberOfWorkers(Spec(GetParam(), v1::TENSOR_LAYOUT_BSHD, 4097, 4097),
                                 {"--mask", "causal"});
}

TEST_P(RingctlAttendEveryType, IsRightForFewQueriesAtTheEndOfManyKeys) {
  v1::AttentionSpec spec = Spec(GetParam(), v1::TENSOR_LAYOUT_BHSD, 5, 1000);
  spec.set_batch(2);
  spec.set_value_dim(48);
  AttendWithEveryNumberOfWorkers(spec, {"--mask", "causal", "--bottom-right"});
}

TEST_P(RingctlAttendEveryType, IsRightForFullCrossAttentionByEveryBalancerAndRotation) {
  v1::AttentionSpec spec = Spec(GetParam(), v1::TENSOR_LAYOUT_BSHD, 120, 500);
  spec.set_batch(2);
  spec.set_value_dim(96);
  for (const char* balancer : {"contiguous", "head-tail"}) {
    for (const char* rotate : {"all-to-all", "all-gather", "pass-q"}) {
      AttendWithEveryNumberOfWorkers(spec, {"--balancer", balancer, "--rotate", rotate});
    }
  }
}

TEST_F(RingctlAttend, TakesOneMaskPerBatchRowAndAScale) {
  v1::AttentionSpec spec = Spec(v1::DTYPE_F32, v1::TENSOR_LAYOUT_BHSD, 100, 150);
  spec.set_batch(3);
  const std::string masks = folder_.Write(
      "masks.json", R"([{"causal":true,"qOffset":"-20"},{},{"causal":true,"bottomRight":true}])");
  for (const char* scale : {"-0.3", "0", "2"}) {
    Attend(Input(spec), spec, {"--mask-file", masks, "--scale", scale, "--workers", "2"});
  }
}

TEST_F(RingctlAttend, DoesWhatThePlanSaid) {
  const v1::AttentionSpec spec = Spec(v1::DTYPE_F32, v1::TENSOR_LAYOUT_BHSD, 999, 999);
  const std::string input = Input(spec);
  for (const char* rotate : {"all-to-all", "all-gather", "pass-q"}) {
    const std::vector<std::string> options = {"--mask",   "causal", "--balancer", "head-tail",
                                              "--rotate", rotate,   "--workers",  "3"};
    std::vector<std::string> plan = {"plan", input, "--json"};
    plan.insert(plan.end(), options.begin(), options.end());
    const RunResult planned = Ringctl(plan);
    ASSERT_EQ(planned.exit, kExitOk) << planned.err;
    const nlohmann::json expected = planned.Json(), json = Attend(input, spec, options);
    for (const char* key : {"balancer", "rotate", "workers", "layout", "work", "bytes", "imbalance",
                            "imbalance_total"}) {
      EXPECT_EQ(json[key], expected[key]) << key;  // bytes: planned here, counted there
    }
    EXPECT_GT(json["bytes_between_workers"], 0);
  }
}

TEST_F(RingctlAttend, PlansForMoreWorkersThanThereAre) {
  const RunResult run =
      Ringctl({"plan", "--q-heads", "8", "--kv-heads", "2", "--q-len", "100000", "--head-dim",
               "128", "--mask", "causal", "--workers", "16", "--balancer", "head-tail", "--json"});
  ASSERT_EQ(run.exit, kExitOk) << run.err;
  const nlohmann::json json = run.Json();
  EXPECT_EQ(json["workers"], 16);
  EXPECT_EQ(json["layout"]["q"].size(), 1u);
  EXPECT_EQ(json["layout"]["kv"][0].size(), 16u);
  EXPECT_EQ(json["steps"].size(), 16u);
  EXPECT_EQ(json["peak_bytes"].size(), 16u);
  EXPECT_NEAR(json["imbalance"], 1, 0.001);

  const RunResult text = Ringctl({"plan", "--q-heads", "8", "--q-len", "1000", "--head-dim", "64",
                                  "--workers", "2", "--dtype", "bf16"});
  EXPECT_EQ(text.exit, kExitOk) << text.err;
  EXPECT_THAT(text.out, AllOf(HasSubstr("bf16"), HasSubstr("2 workers"), HasSubstr("rank")));
}

TEST_F(RingctlAttend, SaysWhyTheServerDoesNot) {
  const std::string input = Input(Spec(v1::DTYPE_F32, v1::TENSOR_LAYOUT_BHSD, 10, 10));
  const std::string sinks = folder_.Write("sinks.json", R"({"sinks":1})");
  struct Refusal {
    std::vector<std::string> arguments;
    int exit;
    const char* says;
  };
  for (const Refusal& refusal : {
           Refusal{{"--workers", "9"}, kExitUnavailable, "options.workers is 9"},
           Refusal{{"--mask-file", sinks}, kExitRefused, "spec.masks[0].sinks"},
       }) {
    std::vector<std::string> arguments = {"attend", input, "--out", folder_.Path("out")};
    arguments.insert(arguments.end(), refusal.arguments.begin(), refusal.arguments.end());
    const RunResult run = Ringctl(arguments);
    EXPECT_EQ(run.exit, refusal.exit);
    EXPECT_THAT(run.err, HasSubstr(refusal.says));
    EXPECT_THAT(folder_.Names(), ::testing::Not(Contains("out")));
  }
}

TEST_F(RingctlAttend, StatusShowsEveryWorker) {
  const RunResult run = Ringctl({"status", "--json"});
  ASSERT_EQ(run.exit, kExitOk) << run.err;
  const nlohmann::json json = run.Json();
  EXPECT_NE(json["epoch"], "");
  EXPECT_EQ(json["draining"], false);
  ASSERT_EQ(json["workers"].size(), static_cast<size_t>(kWorkers));
  for (int i = 0; i < kWorkers; ++i) {
    EXPECT_THAT(json["workers"], Contains(::testing::Truly([&](const nlohmann::json& worker) {
                  return worker["pid"] == cluster_->worker(i).pid() && worker["device"] == "cpu" &&
                         worker["threads"] == 1 && worker["memory_bytes"] > 0;
                })));
  }
  EXPECT_GT(json["limits"]["max_queued_jobs"], 0);
  EXPECT_GT(json["measurements"]["pairs_per_second"], 0);

  const RunResult text = Ringctl({"status"});
  EXPECT_EQ(text.exit, kExitOk) << text.err;
  for (const nlohmann::json& worker : json["workers"]) {
    EXPECT_THAT(text.out, AllOf(HasSubstr(worker["id"]), HasSubstr(worker["address"])));
  }
}

}  // namespace
}  // namespace ringserve
