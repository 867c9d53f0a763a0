// Every field of a request that a stranger may set wrongly: the status names the field, its value
// and the limit.
#include "proto/validate.h"

#include <functional>
#include <limits>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <google/protobuf/unknown_field_set.h>
#include <gtest/gtest.h>

#include "tests/proto/valid_header.h"

namespace ringserve {
namespace {

using testing::HasSubstr;

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
void SetWeights(v1::AttendHeader& header, int workers, std::initializer_list<double> weights) {
  header.mutable_options()->set_workers(workers);
  for (const double weight : weights) header.mutable_options()->add_worker_weights(weight);
}

// `set` puts one number into a field whose values reach from `least` to `most`.
void ExpectRange(const std::string& field, int64_t least, int64_t most,
                 const std::function<void(v1::AttendHeader&, int64_t)>& set) {
  const auto status_of = [&](int64_t value) {
    v1::AttendHeader header = ValidHeader();
    set(header, value);
    return ValidateHeader(header);
  };
  for (const int64_t value : {least, most}) {
    const absl::Status status = status_of(value);
    // What is too large together, or not served, is another field's complaint.
    EXPECT_THAT(std::string(status.message()), Not(HasSubstr("at most"))) << field << value;
    EXPECT_THAT(std::string(status.message()), Not(HasSubstr("at least"))) << field << value;
  }
  const auto expect_refused = [&](int64_t value, const std::string& limit) {
    const absl::Status status = status_of(value);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << field << " " << value;
    EXPECT_EQ(std::string(status.message()), field + " is " + std::to_string(value) + ": " + limit);
  };
  for (const int64_t value : {least - 1, kMin}) {
    expect_refused(value, "at least " + std::to_string(least));
  }
  for (const int64_t value : {most + 1, kMax}) {
    expect_refused(value, "at most " + std::to_string(most));
  }
}

TEST(Validate, AcceptsEverythingThatIsServed) {
  const std::vector<std::function<void(v1::AttendHeader&)>> changes = {
      [](auto& header) {},
      [](auto& header) { header.mutable_spec()->set_dtype(v1::DTYPE_F64); },
      [](auto& header) { header.mutable_spec()->set_dtype(v1::DTYPE_BF16); },
      [](auto& header) { header.mutable_spec()->set_dtype(v1::DTYPE_F16); },
      [](auto& header) { header.mutable_spec()->set_tensor_layout(v1::TENSOR_LAYOUT_BHSD); },
      [](auto& header) { header.mutable_spec()->set_tensor_layout(v1::TENSOR_LAYOUT_BSHD); },
      [](auto& header) { header.mutable_spec()->set_value_dim(5); },
      [](auto& header) { header.mutable_spec()->set_scale(0); },
      [](auto& header) { header.mutable_spec()->set_scale(-3e38); },
      [](auto& header) {
        header.mutable_spec()->set_dtype(v1::DTYPE_F64);
        header.mutable_spec()->set_scale(1e300);
      },
      [](auto& header) {
        header.mutable_spec()->mutable_bias()->set_boolean(true);
        header.mutable_spec()->mutable_bias()->set_per_batch(true);
        header.mutable_spec()->mutable_bias()->set_per_head(true);
      },
      [](auto& header) {
        header.mutable_spec()->mutable_bias();
        header.mutable_spec()->set_alibi_slopes(true);
        header.mutable_spec()->set_sink_logits(true);
        header.mutable_options()->set_lse_without_sinks(true);
      },
      [](auto& header) { header.mutable_options()->set_lse_without_sinks(true); },  // of nothing
      [](auto& header) { Mask(header).set_causal(true); },
      [](auto& header) { Mask(header).set_q_offset(-7); },
      [](auto& header) { Mask(header).set_bottom_right(true); },
      [](auto& header) { Mask(header).mutable_window(); },
      [](auto& header) {
        Mask(header).mutable_window()->set_right(2);
        Mask(header).set_sinks(31);
      },
      [](auto& header) {
        Mask(header).set_causal(true);
        Mask(header).set_prefix(31);
      },
      [](auto& header) { Mask(header).mutable_documents(); },
      [](auto& header) {
        for (const int length : {0, 20}) Mask(header).mutable_documents()->add_q_lengths(length);
        for (const int length : {25, 5}) Mask(header).mutable_documents()->add_kv_lengths(length);
      },
      [](auto& header) {
        Mask(header).mutable_blocks()->set_q_block(kMaxDim);
        Mask(header).mutable_blocks()->set_kv_block(10);
        Mask(header).mutable_blocks()->set_bits("x");
      },
      [](auto& header) { Mask(header).add_slices(); },
      [](auto& header) {
        for (int i = 0; i < 3; ++i) header.mutable_spec()->add_masks()->set_causal(i == 1);
      },
      [](auto& header) { header.mutable_options()->set_balancer(v1::BALANCER_AUTO); },
      [](auto& header) { header.mutable_options()->set_balancer(v1::BALANCER_CONTIGUOUS); },
      [](auto& header) { header.mutable_options()->set_balancer(v1::BALANCER_HEAD_TAIL); },
      [](auto& header) { header.mutable_options()->set_balancer(v1::BALANCER_PER_DOCUMENT); },
      [](auto& header) { header.mutable_options()->set_balancer(v1::BALANCER_PTRR); },
      [](auto& header) { header.mutable_options()->set_ptrr_block(1); },
      [](auto& header) { header.mutable_options()->set_ptrr_count_blocks(true); },
      [](auto& header) {
        SetWeights(header, 2, {1e-6, 1});
      },
      [](auto& header) { header.mutable_options()->set_rotate(v1::ROTATE_METHOD_AUTO); },
      [](auto& header) { header.mutable_options()->set_rotate(v1::ROTATE_METHOD_ALL_TO_ALL); },
      [](auto& header) { header.mutable_options()->set_rotate(v1::ROTATE_METHOD_ALL_GATHER); },
      [](auto& header) { header.mutable_options()->set_rotate(v1::ROTATE_METHOD_PASS_Q); },
      [](auto& header) { header.mutable_options()->set_return_lse(true); },
      [](auto& header) { header.mutable_options()->set_convert_to_f32(true); },
      [](auto& header) { header.set_request_id(std::string(128, '~')); },
      [](auto& header) { header.set_request_id(" !\"#$%&'()*+,-./09:;<=>?@AZ[\\]^_`az{|}~"); },
  };
  for (size_t i = 0; i < changes.size(); ++i) {
    v1::AttendHeader header = ValidHeader();
    changes[i](header);
    EXPECT_TRUE(ValidateHeader(header).ok()) << i << ": " << ValidateHeader(header);
    EXPECT_TRUE(ValidateSpec(header.spec()).ok());
    EXPECT_TRUE(ValidateOptions(header.options()).ok());
  }
}

TEST(Validate, BoundsEveryNumber) {
  ExpectRange("spec.batch", 1, kMaxDim,
              [](auto& header, int64_t value) { header.mutable_spec()->set_batch(value); });
  ExpectRange("spec.q_heads", 1, kMaxDim,
              [](auto& header, int64_t value) { header.mutable_spec()->set_q_heads(value); });
  ExpectRange("spec.kv_heads", 1, kMaxDim,
              [](auto& header, int64_t value) { header.mutable_spec()->set_kv_heads(value); });
  ExpectRange("spec.q_len", 1, kMaxDim,
              [](auto& header, int64_t value) { header.mutable_spec()->set_q_len(value); });
  ExpectRange("spec.kv_len", 1, kMaxDim,
              [](auto& header, int64_t value) { header.mutable_spec()->set_kv_len(value); });
  ExpectRange("spec.head_dim", 1, 1024,
              [](auto& header, int64_t value) { header.mutable_spec()->set_head_dim(value); });
  ExpectRange("spec.value_dim", 0, 1024,
              [](auto& header, int64_t value) { header.mutable_spec()->set_value_dim(value); });
  ExpectRange("spec.masks[0].q_offset", -kMaxOffset, kMaxOffset,
              [](auto& header, int64_t value) { Mask(header).set_q_offset(value); });
  ExpectRange("spec.masks[0].window.left", 0, kMaxOffset,
              [](auto& header, int64_t value) { Mask(header).mutable_window()->set_left(value); });
  ExpectRange("spec.masks[0].window.right", 0, kMaxOffset,
              [](auto& header, int64_t value) { Mask(header).mutable_window()->set_right(value); });
  ExpectRange("spec.masks[0].sinks", 0, kMaxOffset, [](auto& header, int64_t value) {
    Mask(header).mutable_window();
    Mask(header).set_sinks(value);
  });
  ExpectRange("spec.masks[0].prefix", 0, kMaxOffset, [](auto& header, int64_t value) {
    Mask(header).set_causal(true);
    Mask(header).set_prefix(value);
  });
  ExpectRange("options.ptrr_block", 0, kMaxDim,
              [](auto& header, int64_t value) { header.mutable_options()->set_ptrr_block(value); });
}

TEST(Validate, BoundsTheNumberOfWorkers) {
  ExpectInvalid({
      {[](auto& header) { header.mutable_options()->set_workers(-1); },
       "options.workers is -1: at least 0"},
      {[](auto& header) { header.mutable_options()->set_workers(1025); },
       "options.workers is 1025: at most 1024"},
  });
  v1::AttentionOptions options;
  options.set_workers(1024);
  EXPECT_TRUE(ValidateOptions(options).ok());
}

TEST(Validate, RefusesUnknownEnumValues) {
  ExpectInvalid({
      {[](auto& header) { header.mutable_spec()->clear_dtype(); },
       "spec.dtype is unspecified: one of DTYPE_F32, DTYPE_F64, DTYPE_BF16, DTYPE_F16"},
      {[](auto& header) { header.mutable_spec()->set_dtype(static_cast<v1::DType>(5)); },
       "spec.dtype is 5: not a value of this enum"},
      {[](auto& header) { header.mutable_spec()->set_dtype(static_cast<v1::DType>(-1)); },
       "spec.dtype is -1: not a value of this enum"},
      {[](auto& header) {
         header.mutable_spec()->set_tensor_layout(static_cast<v1::TensorLayout>(3));
       },
       "spec.tensor_layout is 3: not a value of this enum"},
      {[](auto& header) { header.mutable_options()->set_balancer(static_cast<v1::Balancer>(6)); },
       "options.balancer is 6: not a value of this enum"},
      {[](auto& header) { header.mutable_options()->set_rotate(static_cast<v1::RotateMethod>(5)); },
       "options.rotate is 5: not a value of this enum"},
  });
}

TEST(Validate, RefusesHeadsThatAreNoMultiple) {
  ExpectInvalid({{[](auto& header) { header.mutable_spec()->set_q_heads(7); },
                  "spec.q_heads is 7: must be a multiple of spec.kv_heads (2)"},
                 {[](auto& header) { header.mutable_spec()->set_q_heads(1); },
                  "spec.q_heads is 1: must be a multiple of spec.kv_heads (2)"}});
}

TEST(Validate, RefusesNumbersThatAreNotFinite) {
  ExpectInvalid({
      {[](auto& header) { header.mutable_spec()->set_scale(kNan); },
       "spec.scale is nan: must be finite"},
      {[](auto& header) { header.mutable_spec()->set_scale(kInfinity); },
       "spec.scale is inf: must be finite"},
      {[](auto& header) { header.mutable_spec()->set_scale(-kInfinity); },
       "spec.scale is -inf: must be finite"},
      {[](auto& header) { header.mutable_spec()->set_scale(1e39); },
       "spec.scale is 1e+39: must be finite in fp32, in which DTYPE_F32 is computed"},
      {[](auto& header) {
         header.mutable_spec()->set_dtype(v1::DTYPE_BF16);
         header.mutable_spec()->set_scale(-1e39);
       },
       "spec.scale is -1e+39: must be finite in fp32, in which DTYPE_BF16 is computed"},
      {[](auto& header) { header.mutable_spec()->set_softcap(kNan); },
       "spec.softcap is nan: must be finite and above 0"},
      {[](auto& header) { header.mutable_spec()->set_softcap(0); },
       "spec.softcap is 0: must be finite and above 0"},
      {[](auto& header) { header.mutable_spec()->set_dropout(kNan); },
       "spec.dropout is nan: must lie in [0, 1)"},
      {[](auto& header) { header.mutable_spec()->set_dropout(1); },
       "spec.dropout is 1: must lie in [0, 1)"},
      {[](auto& header) { header.mutable_spec()->set_dropout(-0.5); },
       "spec.dropout is -0.5: must lie in [0, 1)"},
      {[](auto& header) { header.mutable_options()->add_worker_weights(kNan); },
       "options.worker_weights[0] is nan: must be finite and above 0"},
      {[](auto& header) {
         header.mutable_options()->add_worker_weights(1);
         header.mutable_options()->add_worker_weights(0);
       },
       "options.worker_weights[1] is 0: must be finite and above 0"},
  });
}

TEST(Validate, WantsOneWeightForEveryWorkerAndNoneTooFarFromTheOthers) {
  ExpectInvalid({
      {[](auto& header) {
         SetWeights(header, 3, {1, 2});
       },
       "options.worker_weights is 2 entries: none, or as many as options.workers (3)"},
      {[](auto& header) {
         SetWeights(header, 0, {1, 2});
       },
       "options.worker_weights is 2 entries: none, or as many as options.workers (0)"},
      {[](auto& header) {
         SetWeights(header, 3, {1, 1.5e6, 2});
       },
       "options.worker_weights[1] is 1.5e+06: at most 1e+06 times the smallest (1)"},
      {[](auto& header) {
         SetWeights(header, 2, {1, -1});
       },
       "options.worker_weights[1] is -1: must be finite and above 0"},
  });
}

TEST(Validate, RefusesDimsWhoseProductOverflows) {
  const auto dims = [](auto& header, int64_t batch, int64_t heads, int64_t q_len, int64_t kv_len) {
    v1::AttentionSpec& spec = *header.mutable_spec();
    spec.set_batch(batch);
    spec.set_q_heads(heads);
    spec.set_kv_heads(heads);
    spec.set_q_len(q_len);
    spec.set_kv_len(kv_len);
    spec.set_head_dim(1024);
  };
  ExpectInvalid({
      {[&](auto& header) { dims(header, kMaxDim, kMaxDim, kMaxDim, kMaxDim); },
       "spec's dims make q larger than 2^62 bytes: batch 2147483647"},
      // A product that is a small number modulo 2^64.
      {[&](auto& header) { dims(header, int64_t{1} << 30, int64_t{1} << 30, int64_t{1} << 30, 1); },
       "spec's dims make q larger than 2^62 bytes"},
      {[&](auto& header) { dims(header, 1 << 20, 1 << 10, 1, kMaxDim); },
       "spec's dims make k and the tensors before it larger than 2^62 bytes"},
      // Each fits, together they do not.
      {[&](auto& header) { dims(header, 1 << 20, 1 << 9, (1 << 19) - 1, (1 << 20) + 1); },
       "spec's dims make v and the tensors before it larger than 2^62 bytes"},
  });
  // Up to the limit: q and out take all but 2^52 of 2^62 bytes, k and v 2^42, lse 2^51.
  v1::AttendHeader header = ValidHeader();
  dims(header, 1 << 20, 1 << 9, (1 << 20) - (1 << 10), 1);
  EXPECT_TRUE(ValidateHeader(header).ok()) << ValidateHeader(header);
  ExpectInvalid({{[&](auto& header) { dims(header, 1 << 20, 1 << 9, (1 << 20) - (1 << 8), 1); },
                  "spec's dims make lse and the tensors before it larger than 2^62 bytes"}});
}

// 2^20 x 2^9 x 2^17 x 2^16 x 4 bytes.
TEST(Validate, CountsABiasAmongTheTensors) {
  const auto ask = [](bool per_batch, bool boolean) {
    return [=](v1::AttendHeader& header) {
      v1::AttentionSpec& spec = *header.mutable_spec();
      spec.set_batch(1 << 20);
      spec.set_q_heads(1 << 9);
      spec.set_kv_heads(1);
      spec.set_q_len(1 << 17);
      spec.set_kv_len(1 << 16);
      spec.set_head_dim(1);
      spec.mutable_bias()->set_per_batch(per_batch);
      spec.mutable_bias()->set_per_head(true);
      spec.mutable_bias()->set_boolean(boolean);
    };
  };
  const char* const words = "spec's dims make bias and the tensors before it larger";
  ExpectInvalid({{ask(true, false), words}, {ask(true, true), words}});
  v1::AttendHeader header = ValidHeader();
  ask(false, false)(header);
  EXPECT_TRUE(ValidateHeader(header).ok()) << ValidateHeader(header);
}

TEST(Validate, RefusesABiasWithQueriesThatTravel) {
  ExpectInvalid({{[](auto& header) {
                    header.mutable_spec()->mutable_bias();
                    header.mutable_options()->set_rotate(v1::ROTATE_METHOD_PASS_Q);
                  },
                  "options.rotate is ROTATE_METHOD_PASS_Q: must be another with spec.bias"}});
}

TEST(Validate, RefusesRequestIdsThatWouldSpoilALog) {
  ExpectInvalid({
      {[](auto& header) { header.set_request_id(std::string(129, 'x')); },
       "request_id is 129 bytes: at most 128"},
      {[](auto& header) { header.set_request_id("two\nlines"); },
       "request_id's byte 3 is 10: printable ASCII (32 to 126) alone"},
      {[](auto& header) { header.set_request_id(std::string("\0", 1)); },
       "request_id's byte 0 is 0: printable ASCII"},
      {[](auto& header) { header.set_request_id("caf\u00e9"); },
       "request_id's byte 3 is 195: printable ASCII"},
      {[](auto& header) { header.set_request_id("\x7f"); }, "request_id's byte 0 is 127"},
  });
}

TEST(Validate, SaysWhatIsNotServed) {
  ExpectAll(
      {
          {[](auto& header) { header.mutable_spec()->set_softcap(30); },
           "spec.softcap is not served yet"},
          {[](auto& header) { header.mutable_spec()->set_dropout(0.1); },
           "spec.dropout is not served yet"},
          {[](auto& header) { header.mutable_options()->set_convert_to_f32(false); },
           "options.convert_to_f32 is false, which is not served"},
          {[](auto& header) { header.set_session("mine"); }, "session is not served yet"},
      },
      absl::StatusCode::kUnimplemented);
}

// A field that only a newer client knows might change the answer.
TEST(Validate, RefusesFieldsOfUnknownNumber) {
  const auto add = [](google::protobuf::Message& message) {
    message.GetReflection()->MutableUnknownFields(&message)->AddVarint(1'000, 1);
  };
  ExpectAll(
      {
          {[&](auto& header) { add(header); },
           "header.field number 1000 is unknown to this server"},
          {[&](auto& header) { add(*header.mutable_spec()); },
           "header.spec.field number 1000 is unknown to this server"},
          {[&](auto& header) { add(*header.mutable_options()); },
           "header.options.field number 1000 is unknown to this server"},
          {[&](auto& header) {
             for (int i = 0; i < 3; ++i) header.mutable_spec()->add_masks();
             add(*header.mutable_spec()->mutable_masks(1));
           },
           "header.spec.masks[1].field number 1000 is unknown to this server"},
      },
      absl::StatusCode::kUnimplemented);
  v1::AttendHeader header = ValidHeader();
  add(*header.mutable_spec());
  EXPECT_THAT(ValidateSpec(header.spec()).ToString(), HasSubstr("spec.field number 1000"));
  add(*header.mutable_options());
  EXPECT_THAT(ValidateOptions(header.options()).ToString(), HasSubstr("options.field number 1000"));
  v1::PlanRequest request;
  *request.mutable_spec() = ValidHeader().spec();
  EXPECT_TRUE(ValidatePlanRequest(request).ok()) << ValidatePlanRequest(request);
  for (google::protobuf::Message* part :
       {static_cast<google::protobuf::Message*>(&request),
        static_cast<google::protobuf::Message*>(request.mutable_spec()),
        static_cast<google::protobuf::Message*>(request.mutable_options())}) {
    add(*part);
    EXPECT_EQ(ValidatePlanRequest(request).code(), absl::StatusCode::kUnimplemented);
    EXPECT_THAT(ValidatePlanRequest(request).ToString(), HasSubstr("field number 1000"));
    part->GetReflection()->MutableUnknownFields(part)->Clear();
  }
}

TEST(Validate, NamesWhatIsWrongBeforeWhatIsNotServed) {
  v1::AttendHeader header = ValidHeader();
  header.mutable_spec()->set_softcap(30);
  header.mutable_options()->set_workers(-1);
  header.set_session("mine");
  EXPECT_THAT(ValidateHeader(header).ToString(), HasSubstr("options.workers is -1"));
}

TEST(Validate, TakesNoGradientInAForwardCall) {
  v1::AttendHeader header = ValidHeader();
  header.set_d_lse(true);
  EXPECT_EQ(ValidateHeader(header).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(ValidateHeader(header).ToString(), HasSubstr("d_lse is true"));
}

TEST(Validate, TakesInABackwardCallWhatItHasAlone) {
  v1::AttendHeader header = ValidHeader();
  header.set_d_lse(true);
  header.mutable_options()->set_return_lse(false);
  EXPECT_TRUE(ValidateHeader(header, /*backward=*/true).ok())
      << ValidateHeader(header, /*backward=*/true);
  v1::AttendHeader returns = header, passes_q = header;
  returns.mutable_options()->set_return_lse(true);
  passes_q.mutable_options()->set_rotate(v1::ROTATE_METHOD_PASS_Q);
  v1::PlanRequest request;
  request.set_backward(true);
  *request.mutable_spec() = header.spec();
  EXPECT_TRUE(ValidatePlanRequest(request).ok()) << ValidatePlanRequest(request);
  for (const auto& [wrong, words] : {std::pair{returns, "options.return_lse is true"},
                                     {passes_q, "options.rotate is ROTATE_METHOD_PASS_Q"}}) {
    *request.mutable_options() = wrong.options();
    for (const absl::Status& status :
         {ValidateHeader(wrong, /*backward=*/true), ValidatePlanRequest(request)}) {
      EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
      EXPECT_THAT(status.ToString(), HasSubstr(words));
    }
  }
}

// q, out, d_out and d_q where the forward pass has q and out.
TEST(Validate, CountsTheTensorsOfABackwardCall) {
  v1::AttendHeader header = ValidHeader();
  header.mutable_options()->set_return_lse(false);
  v1::AttentionSpec& spec = *header.mutable_spec();
  spec.clear_masks();
  spec.set_batch(1 << 20);
  spec.set_q_heads(1 << 9);
  spec.set_kv_heads(1);
  spec.set_q_len(1 << 19);
  spec.set_kv_len(1);
  spec.set_head_dim(1024);
  spec.set_value_dim(1024);
  spec.set_dtype(v1::DTYPE_F32);
  EXPECT_TRUE(ValidateHeader(header).ok()) << ValidateHeader(header);
  EXPECT_EQ(ValidateHeader(header, /*backward=*/true).code(), absl::StatusCode::kInvalidArgument);
}

TEST(Validate, RefusesAHeaderWithoutASpec) {
  EXPECT_EQ(ValidateHeader(v1::AttendHeader()).code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace ringserve
