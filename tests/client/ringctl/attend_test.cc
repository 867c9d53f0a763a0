// `ringctl attend`, the program, against a server that answers right, or does what a test says.
#include <functional>
#include <string>
#include <tuple>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "client/ringctl/command.h"
#include "client/ringctl/safetensors.h"
#include "tests/client/fake_attention.h"
#include "tests/client/ringctl/input_file.h"
#include "tests/client/ringctl/ringctl_process.h"
#include "tests/client/ringctl/scratch_folder.h"
#include "tests/support/elements.h"
#include "tests/support/oracle.h"

namespace ringserve {
namespace {

using test::FakeAttention;
using test::RunResult;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::UnorderedElementsAre;

constexpr int64_t kLength = 10;

std::vector<std::byte> Bytes(const std::string& text) {
  const auto* data = reinterpret_cast<const std::byte*>(text.data());
  return {data, data + text.size()};
}

std::string Text(const std::vector<std::byte>& bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

// The right answer, with the plan of two ranks; `spoil` may change `out` first.
grpc::Status AnswerRight(FakeAttention::Stream& stream, test::Upload* seen,
                         const std::function<void(std::vector<double>&)>& spoil = {}) {
  const test::Upload upload = test::ReadUpload(stream);
  const v1::AttentionSpec& spec = upload.header.spec();
  test::Reference right = test::Attend(spec, {Bytes(upload.q), Bytes(upload.k), Bytes(upload.v)});
  if (spoil) spoil(right.out);
  const v1::DType lse = spec.dtype() == v1::DTYPE_F64 ? v1::DTYPE_F64 : v1::DTYPE_F32;
  test::Accept(stream);
  test::SendBackwards(stream, v1::TENSOR_ID_OUT, Text(test::FromDoubles(right.out, spec.dtype())));
  test::SendBackwards(stream, v1::TENSOR_ID_LSE, Text(test::FromDoubles(right.lse, lse)));

  v1::AttendResponse response;
  v1::Statistics& statistics = *response.mutable_statistics();
  statistics.set_request_id("the-id");
  statistics.set_upload_seconds(1);
  statistics.set_compute_seconds(2);
  statistics.set_wait_seconds(3);
  statistics.set_download_seconds(4);
  statistics.set_queued_seconds(5);
  statistics.set_total_seconds(15);
  v1::PlanSummary& plan = *statistics.mutable_plan();
  plan.set_balancer(v1::BALANCER_CONTIGUOUS);
  plan.set_rotate(v1::ROTATE_METHOD_ALL_TO_ALL);
  plan.set_workers(2);
  plan.set_reason("as the test says");
  plan.set_imbalance(1.25);
  plan.set_imbalance_total(1.5);
  plan.add_work(40);
  plan.add_work(60);
  for (v1::SequenceLayout* layout :
       {plan.mutable_layout()->mutable_q(), plan.mutable_layout()->mutable_kv()}) {
    v1::RowLayout& row = *layout->add_rows();
    for (const auto& [begin, end] : {std::pair(0, 6), std::pair(6, 10)}) {
      v1::Segment& segment = *row.add_ranks()->add_segments();
      segment.set_begin(begin);
      segment.set_end(end);
    }
  }
  statistics.add_ranks()->set_bytes_sent(100);
  statistics.add_ranks()->set_bytes_sent(50);
  stream.Write(response);
  if (seen != nullptr) *seen = upload;
  return grpc::Status::OK;
}

class Attend : public ::testing::Test {
 protected:
  static v1::AttentionSpec SmallSpec(v1::DType dtype = v1::DTYPE_F32) {
    v1::AttentionSpec spec;
    spec.set_batch(2);
    spec.set_q_heads(4);
    spec.set_kv_heads(2);
    spec.set_q_len(kLength);
    spec.set_kv_len(kLength);
    spec.set_head_dim(8);
    spec.set_value_dim(6);
    spec.set_dtype(dtype);
    spec.set_tensor_layout(v1::TENSOR_LAYOUT_BHSD);
    return spec;
  }

  void WriteInput(const v1::AttentionSpec& spec) {
    test::WriteInputFile(folder_.Path("in.safetensors"), spec, 3);
  }

  // `attend IN --out out.safetensors ARGUMENTS...`
  RunResult RunAttend(const std::string& server, std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), {"attend", folder_.Path("in.safetensors"), "--out",
                                         folder_.Path("out.safetensors")});
    return test::RunRingctl(spawner_, server, std::move(arguments));
  }

  test::ScratchFolder folder_;
  test::Spawner spawner_;
};

TEST_F(Attend, WritesTheAnswerAndSaysHowItWasComputed) {
  test::Upload seen;
  FakeAttention server([&](FakeAttention::Stream& stream, grpc::ServerContext&, int) {
    return AnswerRight(stream, &seen);
  });
  v1::AttentionSpec spec = SmallSpec();
  WriteInput(spec);
  const RunResult run =
      RunAttend(server.address(), {"--mask", "causal", "--bottom-right", "--scale", "0.5",
                                   "--workers", "2", "--verify", "--json"});
  server.Stop();  // waits for the thread that saw
  ASSERT_EQ(run.exit, kExitOk) << run.err;
  EXPECT_THAT(run.err, IsEmpty());

  v1::Mask& mask = *spec.add_masks();
  mask.set_causal(true);
  mask.set_bottom_right(true);
  spec.set_scale(0.5);
  EXPECT_EQ(seen.header.spec().SerializeAsString(), spec.SerializeAsString());
  EXPECT_EQ(seen.header.options().workers(), 2);
  EXPECT_TRUE(seen.header.options().return_lse());

  const nlohmann::json json = run.Json();
  EXPECT_EQ(json["balancer"], "contiguous");
  EXPECT_EQ(json["rotate"], "all-to-all");
  EXPECT_EQ(json["workers"], 2);
  EXPECT_EQ(json["reason"], "as the test says");
  EXPECT_EQ(json["imbalance"], 1.25);
  EXPECT_EQ(json["imbalance_total"], 1.5);
  EXPECT_EQ(json["work"], nlohmann::json({40, 60}));
  EXPECT_EQ(json["bytes"], nlohmann::json({100, 50}));
  EXPECT_EQ(json["bytes_between_workers"], 150);
  EXPECT_EQ(json["layout"],
            nlohmann::json::parse(R"({"q":[[[[0,6]],[[6,10]]]],"kv":[[[[0,6]],[[6,10]]]]})"));
  EXPECT_EQ(json["attempts"], 1);
  EXPECT_EQ(json["request_id"], "the-id");
  EXPECT_EQ(
      json["seconds"],
      nlohmann::json::parse(
          R"({"upload":1.0,"compute":2.0,"wait":3.0,"download":4.0,"queued":5.0,"total":15.0})"));
  EXPECT_EQ(json["verify"]["rows"], 2 * 4 * kLength);
  EXPECT_EQ(json["verify"]["ok"], true);
  EXPECT_LE(json["verify"]["max_error_out"], json["verify"]["tolerance_out"]);
  EXPECT_LE(json["verify"]["max_error_lse"], json["verify"]["tolerance_lse"]);

  const auto file = SafetensorsFile::Open(folder_.Path("out.safetensors"));
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_THAT((*file)->Tensor("out")->shape, ElementsAre(2, 4, kLength, 6));
  EXPECT_THAT((*file)->Tensor("lse")->shape, ElementsAre(2, 4, kLength));
  const test::Inputs inputs = test::RandomInputs(spec, 3);
  EXPECT_EQ(test::Compare(spec, test::Attend(spec, inputs), (*file)->Tensor("out")->bytes,
                          (*file)->Tensor("lse")->bytes),
            "");
}

TEST_F(Attend, GivesEveryTypeAndLayoutTheirShapes) {
  FakeAttention server([&](FakeAttention::Stream& stream, grpc::ServerContext&, int) {
    return AnswerRight(stream, nullptr);
  });
  for (const v1::DType dtype : {v1::DTYPE_F32, v1::DTYPE_F64, v1::DTYPE_BF16, v1::DTYPE_F16}) {
    v1::AttentionSpec spec = SmallSpec(dtype);
    spec.set_tensor_layout(v1::TENSOR_LAYOUT_BSHD);
    WriteInput(spec);
    const RunResult run = RunAttend(server.address(), {"--layout", "bshd", "--verify"});
    ASSERT_EQ(run.exit, kExitOk) << run.err;
    EXPECT_THAT(run.out, AllOf(HasSubstr("[2, 10, 4, 6]"), HasSubstr("80 rows right"),
                               HasSubstr("as the test says")));
    const auto file = SafetensorsFile::Open(folder_.Path("out.safetensors"));
    ASSERT_TRUE(file.ok()) << file.status();
    EXPECT_EQ((*file)->Tensor("out")->dtype, v1::DType_Name(dtype).substr(6));
    EXPECT_THAT((*file)->Tensor("out")->shape, ElementsAre(2, kLength, 4, 6));
    EXPECT_EQ((*file)->Tensor("lse")->dtype, dtype == v1::DTYPE_F64 ? "F64" : "F32");
    EXPECT_THAT((*file)->Tensor("lse")->shape, ElementsAre(2, 4, kLength));
  }
}

TEST_F(Attend, LeavesNoFileWhereTheAnswerIsWrong) {
  // One row of one head, at the boundary of the two ranks' segments.
  const auto spoil = [](std::vector<double>& out) { out[(3 * kLength + 6) * 6 + 2] += 0.01; };
  FakeAttention server([&](FakeAttention::Stream& stream, grpc::ServerContext&, int) {
    return AnswerRight(stream, nullptr, spoil);
  });
  WriteInput(SmallSpec());
  const RunResult run = RunAttend(server.address(), {"--verify", "--json"});
  EXPECT_EQ(run.exit, kExitWrong);
  EXPECT_THAT(run.err, AllOf(HasSubstr("wrong"), HasSubstr("head 3, query 6, element 2"),
                             HasSubstr("was not written")));
  EXPECT_EQ(run.Json()["verify"]["ok"], false);
  EXPECT_NEAR(run.Json()["verify"]["max_error_out"], 0.01, 1e-5);
  EXPECT_EQ(run.Json()["verify"]["worst"]["query"], 6);
  EXPECT_THAT(folder_.Names(), UnorderedElementsAre("in.safetensors"));

  const RunResult text = RunAttend(server.address(), {"--verify"});
  EXPECT_EQ(text.exit, kExitWrong);
  EXPECT_THAT(text.out, AllOf(HasSubstr("WRONG"), HasSubstr("not written")));
  EXPECT_EQ(RunAttend(server.address(), {}).exit, kExitOk);  // nobody asked
}

TEST_F(Attend, SaysWhereNothingCouldBeCompared) {
  FakeAttention server([&](FakeAttention::Stream& stream, grpc::ServerContext&, int) {
    return AnswerRight(stream, nullptr);
  });
  WriteInput(SmallSpec());
  const std::vector<std::string> endless = {"--scale", "1e308", "--mask", "full", "--json"};
  EXPECT_EQ(RunAttend(server.address(), endless).exit, kExitOk) << "nobody asked";
  std::vector<std::string> verified = endless;
  verified.push_back("--verify");
  const RunResult run = RunAttend(server.address(), verified);
  EXPECT_EQ(run.exit, kExitWrong);
  EXPECT_THAT(run.err, AllOf(HasSubstr("nothing could be compared"), HasSubstr("was written")));
  EXPECT_EQ(run.Json()["verify"]["ok"], false);
  EXPECT_EQ(run.Json()["verify"]["rows"], 0);
}

TEST_F(Attend, LeavesNoFileAndAnOlderOneAloneWhereTheCallFails) {
  FakeAttention server([&](FakeAttention::Stream& stream, grpc::ServerContext&, int) {
    test::ReadUpload(stream);
    test::Accept(stream);
    test::SendChunk(stream, v1::TENSOR_ID_OUT, 0, "half an answer..");
    return grpc::Status(grpc::StatusCode::INTERNAL, "broke, request the-id");
  });
  WriteInput(SmallSpec());
  const RunResult run = RunAttend(server.address(), {});
  EXPECT_EQ(run.exit, kExitFailure);
  EXPECT_THAT(run.err, AllOf(HasSubstr("INTERNAL: broke, request the-id"), HasSubstr("a bug")));
  EXPECT_THAT(run.out, IsEmpty());
  EXPECT_THAT(folder_.Names(), UnorderedElementsAre("in.safetensors"));
  folder_.Write("out.safetensors", "older");
  RunAttend(server.address(), {});
  EXPECT_EQ(folder_.Read("out.safetensors"), "older");
}

TEST_F(Attend, RetriesAloudAndOnlyAsOftenAsItMay) {
  FakeAttention server(
      [&](FakeAttention::Stream& stream, grpc::ServerContext& context, int attempt) {
        if (attempt % 3 == 0) return AnswerRight(stream, nullptr);
        test::ReadUpload(stream);
        test::Accept(stream);
        context.AddTrailingMetadata(kRetryAfterKey, "1");
        return grpc::Status(grpc::StatusCode::UNAVAILABLE,
                            absl::StrCat("worker w1 was lost during job ", attempt));
      });
  WriteInput(SmallSpec());
  const RunResult run = RunAttend(server.address(), {"--json", "--verify"});
  EXPECT_EQ(run.exit, kExitOk) << run.err;
  EXPECT_EQ(run.Json()["attempts"], 3);
  EXPECT_THAT(run.err, AllOf(HasSubstr("attempt 2, because"), HasSubstr("attempt 3, because"),
                             HasSubstr("worker w1 was lost")));

  const int before = server.calls();
  const RunResult once = RunAttend(server.address(), {"--retries", "0"});
  EXPECT_EQ(once.exit, kExitUnavailable);
  EXPECT_EQ(server.calls(), before + 1);
  EXPECT_THAT(once.err, AllOf(HasSubstr("worker w1 was lost"), Not(HasSubstr("attempt"))));
}

TEST_F(Attend, WaitsForReadinessAndSaysEachReasonOnce) {
  FakeAttention server([&](FakeAttention::Stream& stream, grpc::ServerContext&, int attempt) {
    if (attempt == 6) return AnswerRight(stream, nullptr);
    return grpc::Status(grpc::StatusCode::UNAVAILABLE, attempt < 4 ? "draining" : "no workers");
  });
  WriteInput(SmallSpec());
  const RunResult unwilling = RunAttend(server.address(), {"--wait-for-ready", "0"});
  EXPECT_EQ(unwilling.exit, kExitUnavailable) << unwilling.err;
  EXPECT_EQ(server.calls(), 1);

  const RunResult run = RunAttend(server.address(), {"--wait-for-ready", "60"});
  EXPECT_EQ(run.exit, kExitOk) << run.err;
  EXPECT_EQ(run.err,
            "ringctl: attempt 2, because: UNAVAILABLE: draining\n"
            "ringctl: attempt 4, because: UNAVAILABLE: no workers\n");
}

TEST_F(Attend, EndsAtTheDeadline) {
  FakeAttention server([&](FakeAttention::Stream& stream, grpc::ServerContext& context, int) {
    test::ReadUpload(stream);
    test::WaitUntil([&] { return context.IsCancelled(); });
    return grpc::Status::CANCELLED;
  });
  WriteInput(SmallSpec());
  const RunResult run = RunAttend(server.address(), {"--deadline", "0.3"});
  EXPECT_EQ(run.exit, kExitDeadline);
  EXPECT_THAT(run.err, AllOf(HasSubstr("DEADLINE_EXCEEDED"), HasSubstr("--deadline")));
}

TEST_F(Attend, SaysWhatTheServerRefuses) {
  FakeAttention server([&](FakeAttention::Stream&, grpc::ServerContext&, int) {
    return grpc::Status(grpc::StatusCode::UNIMPLEMENTED, "options.rotate PASS_Q is not served yet");
  });
  WriteInput(SmallSpec());
  const RunResult run = RunAttend(server.address(), {"--rotate", "pass-q"});
  EXPECT_EQ(run.exit, kExitRefused);
  EXPECT_THAT(run.err, HasSubstr("options.rotate PASS_Q is not served yet"));
}

TEST_F(Attend, SaysThatThereIsNoServer) {
  WriteInput(SmallSpec());
  const RunResult run = RunAttend("127.0.0.1:1", {});
  EXPECT_EQ(run.exit, kExitUnavailable);
  EXPECT_THAT(run.err, AllOf(HasSubstr("127.0.0.1:1"), HasSubstr("ringctl up")));
}

TEST_F(Attend, SendsNothingWhereTheCommandLineIsWrong) {
  FakeAttention server([&](FakeAttention::Stream&, grpc::ServerContext&, int) {
    return grpc::Status(grpc::StatusCode::INTERNAL, "should not be asked");
  });
  WriteInput(SmallSpec());
  struct Wrong {
    std::vector<std::string> arguments;
    std::string says;
  };
  const std::string mask = folder_.Write("mask.json", R"({"casual":true})");
  for (const Wrong& wrong : {
           Wrong{{"--workers", "-2"}, "-2"},
           Wrong{{"--retries", "-1"}, "-1"},
           Wrong{{"--retries", "many"}, "many"},
           Wrong{{"--deadline", "0"}, "--deadline"},
           Wrong{{"--deadline", "nan"}, "nan"},
           Wrong{{"--wait-for-ready", "nan"}, "nan"},
           Wrong{{"--wait-for-ready", "-1"}, "-1"},
           Wrong{{"--layout", "bsd"}, "bsd"},
           Wrong{{"--q-offset", "4"}, "--q-offset is 4"},
           Wrong{{"--mask-file", mask}, "casual"},
           Wrong{{"--fast"}, "--fast"},
       }) {
    const RunResult run = RunAttend(server.address(), wrong.arguments);
    EXPECT_EQ(run.exit, kExitUsage) << run.err;
    EXPECT_THAT(run.err, HasSubstr(wrong.says));
    EXPECT_THAT(run.out, IsEmpty());
  }
  const std::string in = folder_.Path("in.safetensors");
  for (const auto& [from, to, says] :
       {std::tuple(in, in, "is the input file"), std::tuple(mask, mask + ".out", "safetensors"),
        std::tuple(in, folder_.Path("absent/out"), "absent/out"),
        std::tuple(folder_.Path("absent"), in + ".out", "absent")}) {
    const RunResult run =
        test::RunRingctl(spawner_, server.address(), {"attend", from, "--out", to});
    EXPECT_EQ(run.exit, kExitUsage) << run.err;
    EXPECT_THAT(run.err, HasSubstr(says));
  }
  const RunResult tls = RunAttend(server.address(), {"--tls-ca", "/absent.pem"});
  EXPECT_EQ(tls.exit, kExitUsage) << tls.err;
  EXPECT_THAT(tls.err, HasSubstr("/absent.pem"));
  EXPECT_EQ(server.calls(), 0);
  EXPECT_THAT(folder_.Names(), UnorderedElementsAre("in.safetensors", "mask.json"));
}

}  // namespace
}  // namespace ringserve
