// Bias, ALiBi slopes and sink logits through the whole service: right answers in every layout, and
// uploads of them that are wrong.
#include <functional>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "tests/integration/raw_call.h"
#include "tests/integration/request.h"
#include "tests/support/cluster_fixture.h"

namespace ringserve::test {
namespace {

using ::testing::HasSubstr;

constexpr uint64_t kMostBiasBytes = 16 << 20;

class ExtrasTest : public ClusterTest {
 protected:
  static void SetUpTestSuite() {
    Start({.workers = 3, .server_flags = {"--max-bias-bytes", absl::StrCat(kMostBiasBytes)}});
  }

  static void ExpectRight(const v1::AttendHeader& header) {
    SCOPED_TRACE(header.ShortDebugString());
    const Request request(header, 5);
    const absl::StatusOr<Answer> answer =
        request.AskOf(cluster_->client(), header, {.max_attempts = 1});
    ASSERT_TRUE(answer.ok()) << answer.status();
    EXPECT_EQ(request.WhatIsWrong(*answer), "");
    EXPECT_EQ(WhatIsWrongWithStatistics(header, answer->statistics), "");
  }

  // What the service says to an upload after an accepted header.
  static absl::Status StatusOf(const v1::AttendHeader& header,
                               const std::function<void(RawCall&)>& upload) {
    RawCall call(NewChannel(cluster_->address()));
    EXPECT_TRUE(call.SendHeader(header));
    EXPECT_TRUE(call.AwaitAccepted());
    for (const int tensor : {v1::TENSOR_ID_Q, v1::TENSOR_ID_K, v1::TENSOR_ID_V})
      call.SendChunk(tensor, 0, std::string(128, '\0'));
    upload(call);
    return call.Finish();
  }
};

// One batch row, one head, 8 x 4 floats: 128 bytes each of q, k, v.
v1::AttendHeader TinyHeader() { return MakeHeader(MakeSpec(8, 8, 1, 4, 4), "tiny", 2); }

void ExpectInvalid(const absl::Status& status, const std::string& words) {
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr(words));
}

TEST_F(ExtrasTest, AreRightTogetherAndAlone) {
  for (int which = 1; which < 8; ++which) {
    v1::AttentionSpec spec = MakeSpec(120, 150, 4, 16, 24);
    spec.set_batch(2);
    spec.set_kv_heads(2);
    spec.add_masks()->set_causal(true);
    spec.mutable_masks(0)->set_bottom_right(true);
    if (which & 1) spec.mutable_bias()->set_per_head(which & 2);
    spec.set_alibi_slopes(which & 2);
    spec.set_sink_logits(which & 4);
    for (const bool without : {false, true}) {
      v1::AttendHeader header = MakeHeader(spec, absl::StrCat("extras-", which), 3);
      header.mutable_options()->set_lse_without_sinks(without);
      ExpectRight(header);
    }
  }
}

// Then a bias that they share has a place in each of their layouts.
TEST_F(ExtrasTest, AreRightWhereBatchRowsAreCutEachItsOwnWay) {
  v1::AttentionSpec spec = MakeSpec(100, 100, 2, 8, 8);
  spec.set_batch(2);
  for (const int64_t first : {30, 77}) {
    v1::Mask& mask = *spec.add_masks();
    mask.set_causal(true);
    mask.mutable_documents()->add_q_lengths(first);
    mask.mutable_documents()->add_q_lengths(100 - first);
  }
  spec.set_alibi_slopes(true);
  for (const bool boolean : {false, true}) {
    for (const bool per_batch : {false, true}) {
      spec.mutable_bias()->set_boolean(boolean);
      spec.mutable_bias()->set_per_batch(per_batch);
      v1::AttendHeader header = MakeHeader(spec, "own-layouts", 3);
      header.mutable_options()->set_balancer(v1::BALANCER_PER_DOCUMENT);
      ExpectRight(header);
    }
  }
}

// 9 MB that become 45 MB on their way, and 4 MB of slopes that become 12: more than the coordinator
// holds of one request.
TEST_F(ExtrasTest, OfWhichManyCopiesAreMadeGetThrough) {
  v1::AttentionSpec spec = MakeSpec(1'500, 1'500, 1, 4, 4);
  spec.set_batch(5);
  for (int64_t row = 0; row < 5; ++row) {
    v1::Documents& documents = *spec.add_masks()->mutable_documents();
    documents.add_q_lengths(100 + 200 * row);
    documents.add_q_lengths(1'400 - 200 * row);
  }
  spec.mutable_bias();
  v1::AttendHeader header = MakeHeader(spec, "copies", 3);
  header.mutable_options()->set_balancer(v1::BALANCER_PER_DOCUMENT);
  ExpectRight(header);
  spec = MakeSpec(1, 2, 1'000'000, 1, 1);
  spec.set_alibi_slopes(true);
  spec.set_sink_logits(true);
  ExpectRight(MakeHeader(spec, "slopes", 3));
}

TEST_F(ExtrasTest, ThatAreMissingAreNamed) {
  v1::AttendHeader header = TinyHeader();
  header.mutable_spec()->set_alibi_slopes(true);
  ExpectInvalid(StatusOf(header, [](RawCall& call) { call.HalfClose(); }),
                "upload of alibi_slopes ended after 0 of 4 bytes");
  header.mutable_spec()->mutable_bias();
  ExpectInvalid(StatusOf(header,
                         [](RawCall& call) {
                           call.SendChunk(v1::TENSOR_ID_BIAS, 0, std::string(255, '\0'));
                           call.SendChunk(v1::TENSOR_ID_ALIBI_SLOPES, 0, std::string(4, '\0'));
                           call.HalfClose();
                         }),
                "upload of bias ended after 255 of 256 bytes: 1 are missing");
}

TEST_F(ExtrasTest, ThatWereNotAnnouncedAreRefused) {
  for (const v1::TensorId tensor :
       {v1::TENSOR_ID_BIAS, v1::TENSOR_ID_ALIBI_SLOPES, v1::TENSOR_ID_SINK_LOGITS}) {
    ExpectInvalid(StatusOf(TinyHeader(),
                           [=](RawCall& call) { call.SendChunk(tensor, 0, std::string(4, 's')); }),
                  "not a tensor of this request's upload");
  }
}

TEST_F(ExtrasTest, OfTooManyBytesAreRefused) {
  v1::AttendHeader header = TinyHeader();
  header.mutable_spec()->set_sink_logits(true);
  ExpectInvalid(StatusOf(header,
                         [](RawCall& call) {
                           call.SendChunk(v1::TENSOR_ID_SINK_LOGITS, 0, std::string(8, '\0'));
                         }),
                "chunk of sink_logits at offset 0: 8 bytes go past the tensor's end at 4 bytes");
}

TEST_F(ExtrasTest, WhoseSpansDoNotFitAreNeverSent) {
  v1::AttendHeader header = TinyHeader();
  header.mutable_spec()->set_alibi_slopes(true);
  const Request request(header, 1);
  Answer answer = request.EmptyAnswer();
  AttendInputs inputs = request.inputs();
  inputs.alibi_slopes = {};
  ExpectInvalid(cluster_->client().Attend(header, inputs, {answer.out, answer.lse}).status(),
                "inputs.alibi_slopes has 0 bytes: the spec says 4");
  header.mutable_spec()->set_alibi_slopes(false);
  ExpectInvalid(
      cluster_->client().Attend(header, request.inputs(), {answer.out, answer.lse}).status(),
      "inputs.alibi_slopes has 4 bytes: the spec says 0");
}

TEST_F(ExtrasTest, ABiasAboveTheServersLimitIsRefusedBeforeItIsSent) {
  v1::AttentionSpec spec = MakeSpec(2048, 2049, 1, 4, 4);
  spec.mutable_bias();
  const std::string words =
      absl::StrCat("spec.bias takes ", 2048 * 2049 * 4, " bytes, limit ", kMostBiasBytes);
  RawCall call(NewChannel(cluster_->address()));
  EXPECT_TRUE(call.SendHeader(MakeHeader(spec, "large", 2)));
  const absl::Status attend = call.Finish();
  EXPECT_EQ(attend.code(), absl::StatusCode::kFailedPrecondition) << attend;
  EXPECT_THAT(std::string(attend.message()), HasSubstr(words));
  v1::PlanRequest request;
  *request.mutable_spec() = spec;
  const absl::Status plan = cluster_->client().Plan(request).status();
  EXPECT_EQ(plan.code(), absl::StatusCode::kFailedPrecondition) << plan;
  EXPECT_THAT(std::string(plan.message()), HasSubstr(words));
  EXPECT_EQ(cluster_->client().GetCluster()->limits().max_bias_bytes(), kMostBiasBytes);
  spec.set_kv_len(2048);
  ExpectRight(MakeHeader(spec, "just-fits", 2));
}

TEST_F(ExtrasTest, ABiasIsRefusedWhereQueriesTravel) {
  v1::AttendHeader header = TinyHeader();
  header.mutable_spec()->mutable_bias();
  header.mutable_options()->set_rotate(v1::ROTATE_METHOD_PASS_Q);
  RawCall call(NewChannel(cluster_->address()));
  EXPECT_TRUE(call.SendHeader(header));
  ExpectInvalid(call.Finish(), "options.rotate is ROTATE_METHOD_PASS_Q");
}

}  // namespace
}  // namespace ringserve::test
