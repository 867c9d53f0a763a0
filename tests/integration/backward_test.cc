// AttendBackward through the whole service, against the oracle: every type, layout, rotate method,
// balancer and extra, over one to three workers.
#include <cmath>
#include <functional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "tests/integration/backward_request.h"
#include "tests/integration/raw_call.h"
#include "tests/integration/request.h"
#include "tests/support/cluster_fixture.h"
#include "tests/support/elements.h"
#include "tests/support/random.h"
#include "tests/support/random_case.h"

namespace ringserve::test {
namespace {

using ::testing::HasSubstr;

constexpr int kWorkers = 3;
constexpr v1::RotateMethod kRotates[] = {v1::ROTATE_METHOD_ALL_TO_ALL,
                                         v1::ROTATE_METHOD_ALL_GATHER};

class BackwardTest : public ClusterTest {
 protected:
  static void SetUpTestSuite() { Start({.workers = kWorkers}); }

  static void ExpectRight(const v1::AttendHeader& header, bool with_d_lse, uint64_t seed = 5,
                          double gain = 1) {
    SCOPED_TRACE(absl::StrCat(with_d_lse ? "with d_lse " : "", header.ShortDebugString()));
    const BackwardRequest request(cluster_->client(), header, seed, with_d_lse, gain);
    const absl::StatusOr<Gradients> gradients =
        request.AskOf(cluster_->client(), request.header(), {.max_attempts = 1});
    ASSERT_TRUE(gradients.ok()) << gradients.status();
    EXPECT_EQ(request.WhatIsWrong(*gradients, request.header()), "");
  }
};

v1::AttentionSpec GroupedSpec(int64_t q_len, int64_t kv_len) {
  v1::AttentionSpec spec = MakeSpec(q_len, kv_len, 4, 16, 24);
  spec.set_batch(2);
  spec.set_kv_heads(2);
  return spec;
}

v1::AttendHeader HeaderOf(v1::AttentionSpec spec, int workers,
                          v1::RotateMethod rotate = v1::ROTATE_METHOD_AUTO,
                          v1::Balancer balancer = v1::BALANCER_AUTO) {
  v1::AttendHeader header = MakeHeader(std::move(spec), "backward", workers);
  header.mutable_options()->set_rotate(rotate);
  header.mutable_options()->set_balancer(balancer);
  return header;
}

TEST_F(BackwardTest, IsRightInEveryTypeLayoutAndMethodOverAnyNumberOfWorkers) {
  int i = 0;
  for (const v1::DType dtype : {v1::DTYPE_F32, v1::DTYPE_F64, v1::DTYPE_BF16, v1::DTYPE_F16}) {
    for (int workers = 1; workers <= kWorkers; ++workers) {
      for (const v1::RotateMethod rotate : kRotates) {
        for (const v1::TensorLayout layout : {v1::TENSOR_LAYOUT_BHSD, v1::TENSOR_LAYOUT_BSHD}) {
          v1::AttentionSpec spec = GroupedSpec(90, 110);
          spec.set_dtype(dtype);
          spec.set_tensor_layout(layout);
          spec.add_masks()->set_causal(true);
          spec.mutable_masks(0)->set_bottom_right(true);
          const auto balancer = static_cast<v1::Balancer>(v1::BALANCER_AUTO + ++i % 5);
          ASSERT_NO_FATAL_FAILURE(
              ExpectRight(HeaderOf(spec, workers, rotate, balancer), i % 2 == 0, i));
        }
      }
    }
  }
}

// Rows at the end of each batch row see nothing, and so do rows of a window past the keys.
TEST_F(BackwardTest, IsRightUnderMasksThatShowSomeRowsNothing) {
  for (const v1::RotateMethod rotate : kRotates) {
    for (const v1::Balancer balancer :
         {v1::BALANCER_CONTIGUOUS, v1::BALANCER_PER_DOCUMENT, v1::BALANCER_PTRR}) {
      v1::AttentionSpec window = GroupedSpec(150, 60);
      window.add_masks()->mutable_window()->set_left(20);
      window.mutable_masks(0)->mutable_window()->set_right(0);
      v1::AttentionSpec documents = GroupedSpec(120, 120);
      for (const int64_t first : {30, 77}) {
        v1::Mask& mask = *documents.add_masks();
        mask.set_causal(true);
        mask.mutable_documents()->add_q_lengths(first);
        mask.mutable_documents()->add_q_lengths(100 - first);
      }
      v1::AttentionSpec slices = GroupedSpec(64, 64);
      v1::Slice& slice = *slices.add_masks()->add_slices();
      slice.set_q_begin(10);
      slice.set_q_end(50);
      slice.set_k_begin(5);
      slice.set_k_end(33);
      for (v1::AttentionSpec& spec : std::vector{window, documents, slices}) {
        spec.set_sink_logits(balancer == v1::BALANCER_PTRR);
        v1::AttendHeader header = HeaderOf(spec, 3, rotate, balancer);
        header.mutable_options()->set_ptrr_block(8 * (balancer == v1::BALANCER_PTRR));
        ASSERT_NO_FATAL_FAILURE(ExpectRight(header, balancer != v1::BALANCER_CONTIGUOUS));
      }
    }
  }
}

TEST_F(BackwardTest, IsRightWithExtrasTogetherAndAlone) {
  for (int which = 1; which < 8; ++which) {
    for (const bool without : {false, true}) {
      v1::AttentionSpec spec = GroupedSpec(70, 90);
      spec.set_dtype(which % 2 ? v1::DTYPE_F32 : v1::DTYPE_BF16);
      spec.add_masks()->set_causal(true);
      if (which & 1) spec.mutable_bias()->set_per_head(which & 2);
      if (which & 1) spec.mutable_bias()->set_boolean(without);
      spec.set_alibi_slopes(which & 2);
      spec.set_sink_logits(which & 4);
      for (const bool with_d_lse : {false, true}) {
        v1::AttendHeader header = HeaderOf(spec, 1 + which % kWorkers);
        header.mutable_options()->set_lse_without_sinks(without);
        ASSERT_NO_FATAL_FAILURE(ExpectRight(header, with_d_lse));
      }
    }
  }
}

TEST_F(BackwardTest, IsRightWhereTensorsAreManyMessages) {
  v1::AttentionSpec spec = MakeSpec(700, 600, 16, 128, 128);
  spec.set_kv_heads(8);
  spec.set_tensor_layout(v1::TENSOR_LAYOUT_BSHD);
  ExpectRight(HeaderOf(spec, 3, v1::ROTATE_METHOD_ALL_TO_ALL), true);
}

TEST_F(BackwardTest, IsRightForRequestsAtRandom) {
  for (uint64_t seed = 0; seed < 60; ++seed) {
    Case c = RandomCase(seed, kWorkers, 120);
    if (seed % 3 == 0) AddRandomExtras(c);
    if (c.options.rotate() == v1::ROTATE_METHOD_PASS_Q) c.options.clear_rotate();
    v1::AttendHeader header;
    *header.mutable_spec() = c.spec;
    *header.mutable_options() = c.options;
    header.set_request_id(absl::StrCat("random-", seed));
    ASSERT_NO_FATAL_FAILURE(ExpectRight(header, seed % 2 == 0, seed, c.gain));
  }
}

// sum(out d_out) + sum(lse d_lse), by the service itself.
double LossOf(Client& client, const BackwardRequest& request, const Inputs& at) {
  const v1::DType dtype = v1::DTYPE_F64;
  v1::AttendHeader header = request.header();
  header.mutable_options()->set_return_lse(true);
  const TensorBytes bytes = *BytesOf(header.spec());
  std::vector<std::byte> out(bytes.out), lse(bytes.lse);
  const auto result = client.Attend(
      header, {.q = at.q, .k = at.k, .v = at.v, .sink_logits = at.sink_logits}, {out, lse});
  if (!result.ok()) throw std::runtime_error(result.status().ToString());
  double loss = 0;
  for (const auto& [answer, gradient] :
       {std::pair{&out, &request.d_out()}, {&lse, &request.d_lse()}}) {
    const std::vector<double> a = ToDoubles(*answer, dtype), g = ToDoubles(*gradient, dtype);
    for (size_t i = 0; i < a.size(); ++i) loss += a[i] * g[i];
  }
  return loss;
}

TEST_F(BackwardTest, AgreesWithFiniteDifferencesOfTheForwardCall) {
  v1::AttentionSpec spec = MakeSpec(12, 14, 4, 8, 6);
  spec.set_kv_heads(2);
  spec.set_dtype(v1::DTYPE_F64);
  spec.set_sink_logits(true);
  spec.add_masks()->set_causal(true);
  spec.mutable_masks(0)->set_bottom_right(true);
  Client& client = cluster_->client();
  const BackwardRequest request(client, HeaderOf(spec, 2), 3, /*with_d_lse=*/true);
  const absl::StatusOr<Gradients> gradients = request.AskOf(client, request.header());
  ASSERT_TRUE(gradients.ok()) << gradients.status();
  struct Of {
    std::vector<std::byte> Inputs::*tensor;
    const std::vector<std::byte>& gradient;
    v1::DType dtype;
    double step, tolerance;  // sink logits are fp32: coarse steps, and gradients rounded to it
  };
  Random random(9);
  for (const Of& of :
       {Of{&Inputs::q, gradients->d_q, v1::DTYPE_F64, 1e-5, 1e-9},
        Of{&Inputs::k, gradients->d_k, v1::DTYPE_F64, 1e-5, 1e-9},
        Of{&Inputs::v, gradients->d_v, v1::DTYPE_F64, 1e-5, 1e-9},
        Of{&Inputs::sink_logits, gradients->d_sink_logits, v1::DTYPE_F32, 0x1p-10, 1e-5}}) {
    const std::vector<double> at = ToDoubles(request.tensors().*of.tensor, of.dtype);
    const std::vector<double> gradient = ToDoubles(of.gradient, of.dtype);
    std::vector<double> more = at, less = at;
    for (size_t i = 0; i < at.size(); ++i) {
      if (!std::isfinite(at[i])) continue;
      const double step = of.step * random.Normal();
      more[i] += step;
      less[i] -= step;
    }
    Inputs above = request.tensors(), below = request.tensors();
    above.*of.tensor = FromDoubles(more, of.dtype);
    below.*of.tensor = FromDoubles(less, of.dtype);
    const std::vector<double> high = ToDoubles(above.*of.tensor, of.dtype);
    const std::vector<double> low = ToDoubles(below.*of.tensor, of.dtype);
    double expected = 0;
    for (size_t i = 0; i < at.size(); ++i) {
      if (std::isfinite(at[i])) expected += gradient[i] * (high[i] - low[i]);
    }
    EXPECT_NEAR(LossOf(client, request, above) - LossOf(client, request, below), expected,
                of.tolerance);
  }
}

TEST_F(BackwardTest, TakesWhatItsDryRunSays) {
  v1::AttentionSpec spec = GroupedSpec(200, 200);
  spec.set_sink_logits(true);
  const BackwardRequest request(cluster_->client(), HeaderOf(spec, 3), 1, /*with_d_lse=*/true);
  v1::PlanRequest planned;
  *planned.mutable_spec() = spec;
  *planned.mutable_options() = request.header().options();
  planned.set_backward(true);
  const absl::StatusOr<v1::PlanResponse> plan = cluster_->client().Plan(planned);
  ASSERT_TRUE(plan.ok()) << plan.status();
  const absl::StatusOr<Gradients> gradients = request.AskOf(cluster_->client(), request.header());
  ASSERT_TRUE(gradients.ok()) << gradients.status();
  EXPECT_EQ(gradients->statistics.plan().SerializeAsString(), plan->plan().SerializeAsString());
}

TEST_F(BackwardTest, RefusesWhatItDoesNotHaveNamingTheField) {
  const auto error = [&](const std::function<void(v1::AttendHeader&)>& spoil, bool backward) {
    v1::AttendHeader header = HeaderOf(GroupedSpec(8, 8), 2);
    header.mutable_options()->set_return_lse(false);
    spoil(header);
    RawCall call(NewChannel(cluster_->address()), kPatience, {}, backward);
    call.SendHeader(header);
    const absl::Status status = call.Finish();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    return std::string(status.message());
  };
  EXPECT_THAT(error([](auto& h) { h.mutable_options()->set_return_lse(true); }, true),
              HasSubstr("options.return_lse"));
  EXPECT_THAT(
      error([](auto& h) { h.mutable_options()->set_rotate(v1::ROTATE_METHOD_PASS_Q); }, true),
      HasSubstr("options.rotate"));
  EXPECT_THAT(error([](auto& h) { h.set_d_lse(true); }, false), HasSubstr("d_lse"));
  RawCall call(NewChannel(cluster_->address()), kPatience, {}, /*backward=*/true);
  v1::AttendHeader header = HeaderOf(MakeSpec(8, 8, 1, 4, 4), 2);
  header.mutable_options()->set_return_lse(false);
  ASSERT_TRUE(call.SendHeader(header) && call.AwaitAccepted());
  for (const int tensor : {v1::TENSOR_ID_Q, v1::TENSOR_ID_K, v1::TENSOR_ID_V, v1::TENSOR_ID_OUT})
    call.SendChunk(tensor, 0, std::string(128, '\0'));
  call.HalfClose();
  EXPECT_THAT(std::string(call.Finish().message()), HasSubstr("lse"));
}

}  // namespace
}  // namespace ringserve::test
