// AttendBackward of the client library: which tensors go and come, and which spans it refuses.
#include <functional>
#include <map>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "ringserve/client.h"
#include "tests/client/fake_attention.h"

namespace ringserve {
namespace {

using test::FakeAttention;
using ::testing::HasSubstr;
using Bytes = std::vector<std::byte>;

// Every tensor has bytes of its own. out is wider than q.
struct BackwardCase {
  BackwardCase() {
    v1::AttentionSpec& spec = *header.mutable_spec();
    spec.set_batch(2);
    spec.set_q_heads(4);
    spec.set_kv_heads(2);
    spec.set_q_len(9'000);
    spec.set_kv_len(700);
    spec.set_head_dim(8);
    spec.set_value_dim(16);
    spec.set_dtype(v1::DTYPE_BF16);
    spec.set_sink_logits(true);
    const TensorBytes bytes = *BytesOf(spec);
    q = Of(bytes.q), k = Of(bytes.k), v = Of(bytes.v), out = Of(bytes.out), lse = Of(bytes.lse);
    d_out = Of(bytes.out), d_lse = Of(bytes.lse), sinks = Of(bytes.sink_logits);
    d_q.resize(bytes.q), d_k.resize(bytes.k), d_v.resize(bytes.v), d_sinks.resize(sinks.size());
  }

  Bytes Of(uint64_t size) { return Bytes(size, std::byte(++fill)); }
  BackwardInputs inputs() const {
    return {.q = q,
            .k = k,
            .v = v,
            .out = out,
            .lse = lse,
            .d_out = d_out,
            .d_lse = d_lse,
            .sink_logits = sinks};
  }
  BackwardOutputs outputs() { return {d_q, d_k, d_v, d_sinks}; }

  v1::AttendHeader header;
  int fill = 0;
  Bytes q, k, v, out, lse, d_out, d_lse, sinks;
  Bytes d_q, d_k, d_v, d_sinks;
};

std::string TextOf(const Bytes& bytes) {
  return std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size());
}

grpc::Status AnswerGradients(FakeAttention::Stream& stream, const test::Upload& upload) {
  test::Accept(stream);
  test::SendBackwards(stream, v1::TENSOR_ID_D_SINK_LOGITS, std::string(16, 's'));
  test::SendBackwards(stream, v1::TENSOR_ID_D_V, upload.v);
  test::SendBackwards(stream, v1::TENSOR_ID_D_K, upload.k);
  test::SendBackwards(stream, v1::TENSOR_ID_D_Q, upload.q);
  test::SendStatistics(stream);
  return grpc::Status::OK;
}

TEST(BackwardClient, SendsTheForwardCallsTensorsAndPutsTheGradientsInPlace) {
  for (const bool with_d_lse : {true, false}) {
    BackwardCase request;
    request.header.set_d_lse(!with_d_lse);  // the span says it
    test::Upload seen;
    FakeAttention server([&](FakeAttention::Stream& stream, grpc::ServerContext&, int) {
      seen = test::ReadUpload(stream);
      return AnswerGradients(stream, seen);
    });
    const auto client = *Client::Connect({.server = server.address()});
    BackwardInputs inputs = request.inputs();
    if (!with_d_lse) inputs.d_lse = {};
    uint64_t moved = 0, to_move = 0;
    const auto result = client->AttendBackward(
        request.header, inputs, request.outputs(),
        {.progress = [&](uint64_t done, uint64_t total) { moved = done, to_move = total; }});
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_EQ(server.backward_calls(), 1);
    EXPECT_EQ(seen.header.d_lse(), with_d_lse);
    EXPECT_EQ(seen.q, TextOf(request.q));
    EXPECT_EQ(seen.k, TextOf(request.k));
    EXPECT_EQ(seen.v, TextOf(request.v));
    std::map<v1::TensorId, std::string> others = {
        {v1::TENSOR_ID_OUT, TextOf(request.out)},
        {v1::TENSOR_ID_LSE, TextOf(request.lse)},
        {v1::TENSOR_ID_D_OUT, TextOf(request.d_out)},
        {v1::TENSOR_ID_SINK_LOGITS, TextOf(request.sinks)}};
    if (with_d_lse) others[v1::TENSOR_ID_D_LSE] = TextOf(request.d_lse);
    EXPECT_TRUE(seen.others == others);
    EXPECT_EQ(TextOf(request.d_q), seen.q);
    EXPECT_EQ(TextOf(request.d_k), seen.k);
    EXPECT_EQ(TextOf(request.d_v), seen.v);
    EXPECT_EQ(TextOf(request.d_sinks), std::string(16, 's'));
    EXPECT_EQ(moved, to_move);
  }
}

TEST(BackwardClient, SendsThemAgainWhenTheServerAsksForIt) {
  BackwardCase request;
  FakeAttention server(
      [&](FakeAttention::Stream& stream, grpc::ServerContext& context, int attempt) {
        const test::Upload upload = test::ReadUpload(stream);
        if (attempt > 1) return AnswerGradients(stream, upload);
        context.AddTrailingMetadata(kRetryAfterKey, "1");
        return grpc::Status(grpc::StatusCode::UNAVAILABLE, "a worker was lost");
      });
  const auto client = *Client::Connect({.server = server.address()});
  const auto result = client->AttendBackward(request.header, request.inputs(), request.outputs());
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->attempts, 2);
  EXPECT_EQ(server.backward_calls(), 2);
  EXPECT_EQ(TextOf(request.d_k), TextOf(request.k));
}

TEST(BackwardClient, RefusesSpansThatDoNotFitTheSpec) {
  const auto client = *Client::Connect({.server = "127.0.0.1:1"});  // nothing is sent
  const auto error = [&](const std::function<void(BackwardInputs&, BackwardOutputs&)>& spoil) {
    BackwardCase request;
    BackwardInputs inputs = request.inputs();
    BackwardOutputs outputs = request.outputs();
    spoil(inputs, outputs);
    const absl::Status status = client->AttendBackward(request.header, inputs, outputs).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    return std::string(status.message());
  };
  EXPECT_THAT(error([](auto& in, auto&) { in.out = in.q; }), HasSubstr("inputs.out has"));
  EXPECT_THAT(error([](auto& in, auto&) { in.lse = {}; }), HasSubstr("inputs.lse has 0 bytes"));
  EXPECT_THAT(error([](auto& in, auto&) { in.d_out = {}; }), HasSubstr("inputs.d_out has 0"));
  EXPECT_THAT(error([](auto& in, auto&) { in.d_lse = in.d_lse.first(4); }),
              HasSubstr("inputs.d_lse has 4 bytes"));
  EXPECT_THAT(error([](auto& in, auto&) { in.sink_logits = {}; }),
              HasSubstr("inputs.sink_logits has 0"));
  EXPECT_THAT(error([](auto& in, auto&) { in.bias = in.q; }), HasSubstr("inputs.bias has"));
  EXPECT_THAT(error([](auto&, auto& out) { out.d_q = {}; }), HasSubstr("outputs.d_q has 0"));
  EXPECT_THAT(error([](auto&, auto& out) { out.d_sink_logits = {}; }),
              HasSubstr("outputs.d_sink_logits has 0"));
  EXPECT_THAT(error([](auto&, auto& out) { out.d_k = out.d_q.first(out.d_k.size()); }),
              HasSubstr("outputs.d_q overlaps outputs.d_k"));
  EXPECT_THAT(error([](auto& in, auto& out) { in.q = out.d_q; }),
              HasSubstr("an output overlaps an input"));
}

}  // namespace
}  // namespace ringserve
