// The self-test's own parts: what its cases are, that its gradients are right, and that no wrong
// answer of a service passes.
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "client/ringctl/machine_devices.h"
#include "client/ringctl/reference_gradients.h"
#include "client/ringctl/selftest_case.h"
#include "client/ringctl/selftest_run.h"
#include "client/ringctl/selftest_speed.h"
#include "proto/validate.h"
#include "tests/client/fake_attention.h"
#include "tests/support/backward_oracle.h"
#include "tests/support/elements.h"
#include "tests/support/oracle.h"
#include "tests/support/process.h"

namespace ringserve::test {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

TEST(MachineDevices, AreReadFromTheWorkersList) {
  const MachineDevices none = ReadDevices(
      "cpu     8 threads\nno CUDA device: there is no NVIDIA driver; CUDA 13.2 wants one\n"
      "built with CUDA 13.2 and NCCL 2.30.7\n");
  EXPECT_TRUE(none.gpus.empty());
  EXPECT_THAT(none.why_no_gpu, HasSubstr("there is no NVIDIA driver"));
  const std::string old = "cuda:1  NVIDIA T4, compute capability 7.5, 14.6 GiB; too old: 8.0\n";
  const MachineDevices two =
      ReadDevices("cpu     8 threads\ncuda:0  NVIDIA H200, compute capability 9.0, 139.7 GiB\n" +
                  old + "cuda:11 NVIDIA GiB 3, compute capability 9.0, 0.5 GiB\n");
  ASSERT_EQ(two.gpus.size(), 2u);
  EXPECT_EQ(two.gpus[0].name, "cuda:0");
  EXPECT_EQ(two.gpus[0].memory_bytes >> 20, 143'052u);
  EXPECT_EQ(two.gpus[1].name, "cuda:11");
  EXPECT_EQ(two.why_no_gpu, "");
  EXPECT_EQ(ReadDevices("cuda:0 unknown\n").gpus[0].memory_bytes, 0u);
  EXPECT_THAT(ReadDevices(old).why_no_gpu, HasSubstr("too old"));
  EXPECT_NE(ReadDevices("cpu     8 threads\n").why_no_gpu, "");
}

TEST(SelftestCase, ARoundHasEveryDTypeWithEveryMaskAndEverythingElse) {
  std::set<std::pair<int, std::string>> masks;
  std::set<int> balancers, rotates, layouts, backward;
  std::set<std::string> extras;
  for (uint64_t seed = 0; seed < kCasesOfAllKinds; ++seed) {
    const SelftestCase one = MakeSelftestCase(seed, 2);
    EXPECT_TRUE(ValidateHeader(one.header).ok()) << seed << ": " << ValidateHeader(one.header);
    masks.emplace(one.header.spec().dtype(), one.mask);
    balancers.insert(one.header.options().balancer());
    rotates.insert(one.header.options().rotate());
    layouts.insert(one.header.spec().tensor_layout());
    extras.insert(one.extras);
    if (one.backward) backward.insert(one.header.spec().dtype());
  }
  EXPECT_EQ(masks.size(), static_cast<size_t>(kCasesOfAllKinds));
  EXPECT_EQ(balancers.size(), 5u);
  EXPECT_EQ(rotates.size(), 4u);
  EXPECT_EQ(layouts.size(), 2u);
  EXPECT_EQ(backward.size(), 4u);
  EXPECT_GT(extras.size(), 4u);
}

TEST(SelftestCase, ThreeRoundsHaveTheGradientsOfEveryDTypeWithEveryMask) {
  std::set<std::pair<int, std::string>> backward;
  for (uint64_t seed = 0; seed < 3 * kCasesOfAllKinds; ++seed) {
    const SelftestCase one = MakeSelftestCase(seed, 2);
    if (one.backward) backward.emplace(one.header.spec().dtype(), one.mask);
  }
  EXPECT_EQ(backward.size(), static_cast<size_t>(kCasesOfAllKinds));
}

TEST(SelftestCase, IsMadeFromItsSeedAloneWhateverTheWorkers) {
  for (uint64_t seed = 0; seed < 12; ++seed) {
    const SelftestCase one = MakeSelftestCase(seed, 1);
    SelftestCase other = MakeSelftestCase(seed, 4);
    EXPECT_EQ(other.header.options().workers(), 4);
    other.header.mutable_options()->set_workers(1);
    EXPECT_EQ(one.header.SerializeAsString(), other.header.SerializeAsString());
    EXPECT_EQ(one.q, other.q);
    EXPECT_EQ(one.bias, other.bias);
    EXPECT_EQ(one.sink_logits, other.sink_logits);
    EXPECT_EQ(one.d_out, other.d_out);
    EXPECT_EQ(one.d_lse, other.d_lse);
  }
}

void ExpectSame(const std::vector<double>& actual, const ReferenceGradient& expected) {
  ASSERT_EQ(actual.size(), expected.values.size());
  for (size_t i = 0; i < actual.size(); ++i) {
    ASSERT_LE(std::abs(actual[i] - expected.values[i]), 1e-12 * (1 + expected.magnitudes[i])) << i;
  }
}

// That `right` passes in the spec's dtype, and does not with one number spoilt.
void ExpectTellsWrong(const v1::AttentionSpec& spec, const ringserve::ReferenceGradients& gradients,
                      const ringserve::ReferenceGradient& right) {
  const auto excess = [&](const std::vector<double>& values) {
    const std::vector<std::byte> answer = FromDoubles(values, spec.dtype());
    return WorstGradient(spec, gradients, right, answer, spec.dtype())->excess();
  };
  EXPECT_LE(excess(right.values), 1);
  std::vector<double> wrong = right.values;
  wrong.back() += 0.5 + std::abs(wrong.back());
  EXPECT_GT(excess(wrong), 1);
}

TEST(ReferenceGradients, AreTheOraclesOverEveryMaskAndExtra) {
  for (uint64_t seed = 0; seed < 3 * kCasesOfAllKinds; ++seed) {
    SCOPED_TRACE(seed);
    const SelftestCase one = MakeSelftestCase(seed, 1);
    if (!one.backward) continue;
    const v1::AttentionSpec& spec = one.header.spec();
    const bool bare = one.header.options().lse_without_sinks();
    const auto gradients = AttentionGradients(spec, one.inputs(), one.d_out, one.d_lse, bare);
    const auto expected =
        AttendBackward(spec, {one.q, one.k, one.v, one.bias, one.alibi_slopes, one.sink_logits},
                       one.d_out, one.d_lse, bare);
    ExpectSame(gradients.d_q.values, {expected.d_q.values, expected.d_q.magnitudes});
    ExpectSame(gradients.d_k.values, {expected.d_k.values, expected.d_k.magnitudes});
    ExpectSame(gradients.d_v.values, {expected.d_v.values, expected.d_v.magnitudes});
    if (spec.sink_logits()) {
      ExpectSame(gradients.d_sink_logits.values,
                 {expected.d_sinks.values, expected.d_sinks.magnitudes});
    }
    ExpectTellsWrong(spec, gradients, gradients.d_q);
    ExpectTellsWrong(spec, gradients, gradients.d_k);
    ExpectTellsWrong(spec, gradients, gradients.d_v);
  }
}

// Says that all was done as it was asked for, but for `workers` where that is not 0.
void SendPlan(FakeAttention::Stream& stream, const v1::AttentionOptions& asked, int workers) {
  v1::AttendResponse response;
  v1::PlanSummary& plan = *response.mutable_statistics()->mutable_plan();
  plan.set_balancer(asked.balancer());
  plan.set_rotate(asked.rotate());
  plan.set_workers(workers != 0 ? workers : asked.workers());
  stream.Write(response);
}

// Right answers by the oracle, but for the last number of the call `wrong`, which is of a row that
// is always looked at; no gradients.
grpc::Status AnswerAllButOne(FakeAttention::Stream& stream, int call, int wrong, int workers = 0) {
  const Upload upload = ReadUpload(stream);
  if (upload.others.count(v1::TENSOR_ID_D_OUT) > 0) {
    return {grpc::StatusCode::UNIMPLEMENTED, "gradients: this is a fake"};
  }
  const v1::AttentionSpec& spec = upload.header.spec();
  const auto bytes = [&](v1::TensorId id) {
    const auto found = upload.others.find(id);
    const std::string text = found == upload.others.end() ? "" : found->second;
    const auto view = std::as_bytes(std::span(text));
    return std::vector<std::byte>(view.begin(), view.end());
  };
  const auto view = [](const std::string& text) {
    const auto all = std::as_bytes(std::span(text));
    return std::vector<std::byte>(all.begin(), all.end());
  };
  Reference right =
      Attend(spec, {view(upload.q), view(upload.k), view(upload.v), bytes(v1::TENSOR_ID_BIAS),
                    bytes(v1::TENSOR_ID_ALIBI_SLOPES), bytes(v1::TENSOR_ID_SINK_LOGITS)});
  if (call == wrong) right.out.back() += 1;
  const bool bare = upload.header.options().lse_without_sinks();
  const auto send = [&](v1::TensorId id, const std::vector<double>& values, v1::DType dtype) {
    const std::vector<std::byte> dense = FromDoubles(values, dtype);
    SendBackwards(stream, id,
                  std::string(reinterpret_cast<const char*>(dense.data()), dense.size()));
  };
  Accept(stream);
  send(v1::TENSOR_ID_OUT, right.out, spec.dtype());
  send(v1::TENSOR_ID_LSE, bare ? right.lse_without_sinks : right.lse,
       spec.dtype() == v1::DTYPE_F64 ? v1::DTYPE_F64 : v1::DTYPE_F32);
  SendPlan(stream, upload.header.options(), workers);
  return grpc::Status::OK;
}

class SelftestOverFake : public ::testing::Test {
 protected:
  std::unique_ptr<Process> Run(const FakeAttention& server, std::vector<std::string> flags) {
    flags.insert(flags.begin(), {"selftest", "--coordinator", server.address()});
    auto selftest = spawner_.Start(Binary("ringctl"), flags);
    exit_ = selftest->WaitForExit(3 * kPatience);
    return selftest;
  }

  Spawner spawner_;
  std::optional<int> exit_;
};

TEST_F(SelftestOverFake, CatchesOneWrongNumberAndSaysHowToSeeItAgain) {
  FakeAttention server([](FakeAttention::Stream& stream, grpc::ServerContext&, int call) {
    return AnswerAllButOne(stream, call, 2);
  });
  const auto selftest =
      Run(server, {"--only", "cases", "--workers", "2", "--cases", "3", "--seed", "30"});
  EXPECT_EQ(exit_, 6) << selftest->output() << selftest->log();
  EXPECT_THAT(selftest->output(), HasSubstr("selftest: 1 passed, 1 failed, 1 skipped"));
  EXPECT_THAT(selftest->output(), HasSubstr("FAILED forward "));
  EXPECT_THAT(selftest->output(), HasSubstr(", should be "));
  EXPECT_THAT(selftest->output(),
              HasSubstr("again: " + std::filesystem::canonical(Binary("ringctl")).string() +
                        " selftest --only cases --coordinator " + server.address() +
                        " --workers 2 --cases 1 --seed 31 --deadline 60\n"));
  EXPECT_THAT(selftest->output(), HasSubstr("SKIPPED: UNIMPLEMENTED: gradients: this is a fake"));
}

TEST_F(SelftestOverFake, TakesNoRightAnswerOfFewerWorkersThanWereAskedFor) {
  FakeAttention server([](FakeAttention::Stream& stream, grpc::ServerContext&, int call) {
    return AnswerAllButOne(stream, call, 0, 1);
  });
  const auto selftest =
      Run(server, {"--only", "cases", "--workers", "2", "--cases", "1", "--seed", "30"});
  EXPECT_EQ(exit_, 1) << selftest->output() << selftest->log();
  EXPECT_THAT(selftest->output(), HasSubstr("ran on 1 workers, not 2"));
}

TEST_F(SelftestOverFake, SkipsWhatIsUnimplementedOnlyWhereTheServiceMayLackIt) {
  FakeAttention server([](FakeAttention::Stream&, grpc::ServerContext&, int) {
    return grpc::Status(grpc::StatusCode::UNIMPLEMENTED, "later");
  });
  const auto client = Client::Connect({.server = server.address()});
  ASSERT_TRUE(client.ok());
  for (const bool may_lack : {false, true}) {
    const Outcome expected = may_lack ? Outcome::kSkipped : Outcome::kFailed;
    const auto result = RunSelftestCase(**client, MakeSelftestCase(0, 1), kPatience, may_lack);
    EXPECT_EQ(result.outcome, expected);
    EXPECT_THAT(result.why, HasSubstr("later"));
    Speed speed;
    EXPECT_EQ(MeasureSpeed(**client, 1, v1::DTYPE_F32, 8, may_lack, speed).outcome, expected);
  }
}

TEST_F(SelftestOverFake, AsksAServiceThatAnswersNothingFewQuestions) {
  FakeAttention server([](FakeAttention::Stream&, grpc::ServerContext&, int) {
    return grpc::Status(grpc::StatusCode::INTERNAL, "broken");
  });
  const auto selftest = Run(server, {"--only", "cases", "--workers", "1", "--cases", "9"});
  EXPECT_EQ(exit_, 1) << selftest->output() << selftest->log();
  EXPECT_EQ(server.calls(), 3);
  EXPECT_THAT(selftest->output(), HasSubstr("selftest: 0 passed, 3 failed, 6 skipped"));
  EXPECT_THAT(selftest->output(), HasSubstr("INTERNAL: broken"));
}

TEST_F(SelftestOverFake, FailsWithoutWorkersAndKillsNobodysWorker) {
  FakeAttention server([](FakeAttention::Stream& stream, grpc::ServerContext&, int call) {
    return AnswerAllButOne(stream, call, 0);
  });
  auto selftest = Run(server, {});
  EXPECT_EQ(exit_, 1) << selftest->output();
  EXPECT_THAT(selftest->output(), HasSubstr("there are no workers"));
  selftest = Run(server, {"--only", "faults", "--workers", "1"});
  EXPECT_EQ(exit_, 2) << selftest->output();
  EXPECT_THAT(selftest->log(), HasSubstr("--only faults: not with --coordinator"));
}

TEST_F(SelftestOverFake, SaysThatAnAnswerIsWrongAlsoWhereTheReportCannotBeWritten) {
  FakeAttention server([](FakeAttention::Stream& stream, grpc::ServerContext&, int call) {
    return AnswerAllButOne(stream, call, 1);
  });
  const auto selftest =
      Run(server, {"--only", "cases", "--workers", "1", "--cases", "1", "--report", "/dev/full"});
  EXPECT_EQ(exit_, 6) << selftest->output() << selftest->log();
  EXPECT_THAT(selftest->log(), HasSubstr("/dev/full could not be written"));
}

TEST_F(SelftestOverFake, RefusesAReportThatCannotBeWrittenBeforeItAsksAnything) {
  FakeAttention server([](FakeAttention::Stream& stream, grpc::ServerContext&, int call) {
    return AnswerAllButOne(stream, call, 0);
  });
  const auto selftest = Run(server, {"--workers", "1", "--report", "/nowhere/report.json"});
  EXPECT_EQ(exit_, 2) << selftest->output();
  EXPECT_THAT(selftest->log(), HasSubstr("--report is /nowhere/report.json"));
  EXPECT_THAT(selftest->output(), Not(HasSubstr("selftest:")));
  EXPECT_EQ(server.calls(), 0);
}

}  // namespace
}  // namespace ringserve::test
