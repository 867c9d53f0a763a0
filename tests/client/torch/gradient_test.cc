// Backward passes through served calls: PyTorch's own gradients.
#include <functional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <torch/jit.h>

#include "tests/client/torch/served.h"

namespace ringserve::test {
namespace {

struct Gradients {
  at::Tensor query, key, value;  // undefined where none was asked for
};

// `input`'s tensors as leaves that require gradients, where `wanted` says so.
SdpaInput Leaves(SdpaInput input, const std::vector<bool>& wanted = {true, true, true}) {
  at::Tensor* const tensors[] = {&input.query, &input.key, &input.value};
  for (size_t i = 0; i < 3; ++i)
    *tensors[i] = tensors[i]->detach().clone().requires_grad_(wanted[i]);
  return input;
}

Gradients GradientsOf(const SdpaInput& leaves, const at::Tensor& d_out) {
  Sdpa(leaves).backward(d_out.to(leaves.query.scalar_type()));
  return {leaves.query.grad(), leaves.key.grad(), leaves.value.grad()};
}

class GradientTest : public ServedTest {
 protected:
  static SdpaInput Input(at::ScalarType type = at::kDouble, int64_t kv_heads = 4) {
    return {Randn({2, 4, 33, 16}, type), Randn({2, kv_heads, 45, 16}, type),
            Randn({2, kv_heads, 45, 16}, type)};
  }

  // Served forward and backward, with PyTorch's gradients in fp64 (of `same`, where scope and call
  // say it in parts).
  static void ExpectRight(const SdpaInput& input, const ContextParallelOptions& options = {},
                          const std::optional<SdpaInput>& same = std::nullopt) {
    const at::ScalarType type = input.query.scalar_type();
    const SdpaInput in_double = InDouble(same.value_or(input));
    // What the service rounds `out` to before the backward pass is no gradient's fault.
    const at::Tensor d_out = Randn(Sdpa(in_double).sizes(), type);
    const Gradients right = GradientsOf(Leaves(in_double), d_out.to(at::kDouble));
    const ContextParallel scope(client(), options);
    Gradients given;
    ASSERT_NO_THROW(given = GradientsOf(Leaves(input), d_out));
    EXPECT_EQ(scope.calls(), 1);
    EXPECT_EQ(scope.backward_calls(), 1);
    EXPECT_TRUE(scope.statistics().has_value());
    ASSERT_TRUE(scope.backward_statistics().has_value());
    EXPECT_NE(scope.backward_statistics()->plan().rotate(), v1::ROTATE_METHOD_PASS_Q);
    const auto expect = [&](const at::Tensor& a, const at::Tensor& b) {
      const double size = std::max(1.0, b.abs().max().item<double>());
      EXPECT_EQ(WhatDiffers(a, b, type, 2 * size * ToleranceOf(type)), "");
    };
    expect(given.query, right.query);
    expect(given.key, right.key);
    expect(given.value, right.value);
  }
};

TEST_F(GradientTest, EveryTypeHasThem) {
  for (const at::ScalarType type : {at::kFloat, at::kDouble, at::kBFloat16, at::kHalf}) {
    SdpaInput input = Input(type);
    ExpectRight(input);
    input.is_causal = true;
    ExpectRight(input);
  }
}

TEST_F(GradientTest, ArgumentsMeanWhatTheyMeanInPyTorch) {
  SdpaInput input = Input(at::kDouble, 2);
  input.enable_gqa = true;
  input.scale = 0.3;
  ExpectRight(input);
  input.is_causal = true;
  ExpectRight(input);
  input.value = Randn({2, 1, 45, 5}, at::kDouble);
  ExpectRight(input);
}

TEST_F(GradientTest, MasksAndBiasesHide) {
  SdpaInput input = Input();
  const at::Tensor random = at::rand({2, 1, 33, 45}) < 0.7;
  at::Tensor blind = at::ones({33, 45}, at::kBool).tril(3);
  blind[7].fill_(false);
  for (const at::Tensor& mask :
       {random, blind, Randn({33, 45}, at::kDouble), Randn({2, 4, 33, 45}, at::kDouble)}) {
    input.attn_mask = mask;
    ExpectRight(input);
  }
  // A bias that 16 bits do not hold.
  input = Input(at::kBFloat16);
  input.attn_mask = 300 + Randn({33, 45});
  ExpectRight(input);
}

TEST_F(GradientTest, TheScopesMasksHoldBesideTheCallsOwn) {
  v1::Mask window;
  window.mutable_window()->set_left(7);
  SdpaInput input = Input();
  input.is_causal = true;
  SdpaInput same = input;
  same.is_causal = false;
  same.attn_mask = at::ones({33, 45}, at::kBool).tril().triu(-7);
  ExpectRight(input, {.masks = {window}}, same);
}

TEST_F(GradientTest, WhatIsBroadcastIsSummed) {
  const SdpaInput input = Input();
  ExpectRight({input.query, input.key.narrow(0, 0, 1), input.value});
  ExpectRight({input.query, input.key.narrow(1, 0, 1), input.value.narrow(1, 0, 1)});
  ExpectRight({input.query.narrow(1, 0, 1), input.key, input.value});
  ExpectRight({input.query[0], input.key[0], input.value[0]});
  ExpectRight({input.query[0][0], input.key[0][0], input.value[0][0]});
}

TEST_F(GradientTest, PassQIsForForwardPassesAlone) {
  ContextParallelOptions options;
  options.attention.set_rotate(v1::ROTATE_METHOD_PASS_Q);
  options.attention.set_workers(2);
  ExpectRight(Input(), options);
}

TEST_F(GradientTest, AreComputedWhereTheyAreAskedForAlone) {
  const SdpaInput input = Input();
  const at::Tensor d_out = Randn({2, 4, 33, 16}, at::kDouble);
  const Gradients right = GradientsOf(Leaves(input), d_out);
  const ContextParallel scope(client());
  const Gradients given = GradientsOf(Leaves(input, {false, false, true}), d_out);
  EXPECT_FALSE(given.query.defined() || given.key.defined());
  EXPECT_EQ(WhatDiffers(given.value, right.value, at::kDouble, 1e-11), "");
}

TEST_F(GradientTest, WithoutThemNothingMoreIsAskedFor) {
  SdpaInput input = Leaves(Input());
  const ContextParallel scope(client());
  const c10::NoGradGuard no_grad;
  const at::Tensor out = Sdpa(input);
  EXPECT_FALSE(out.requires_grad());
  ASSERT_TRUE(scope.statistics().has_value());
  EXPECT_EQ(scope.statistics()->download_bytes(), out.nbytes());
}

TEST_F(GradientTest, AreServedAfterTheScopeAndOnOtherThreads) {
  const SdpaInput input = Leaves(Input());
  const SdpaInput same = Leaves(input);
  const at::Tensor d_out = at::ones({}, at::kDouble).expand({2, 4, 33, 16});  // as sum() gives it
  const Gradients right = GradientsOf(same, d_out);
  const std::shared_ptr<const ServedCalls> served = EnableContextParallelDispatcher(client());
  const at::Tensor out = Sdpa(input);
  DisableContextParallelDispatcher();
  std::thread([&] { out.sum().backward(); }).join();
  EXPECT_EQ(served->backward_calls(), 1);
  EXPECT_EQ(WhatDiffers(input.query.grad(), right.query, at::kDouble, 1e-11), "");
}

TEST_F(GradientTest, OfGradientsAreRefused) {
  const SdpaInput input = Leaves(Input());
  const ContextParallel scope(client());
  const at::Tensor out = Sdpa(input).sum();
  ExpectRefused([&] { out.backward({}, /*retain_graph=*/true, /*create_graph=*/true); },
                absl::StatusCode::kUnimplemented, "create_graph");
  EXPECT_EQ(scope.backward_calls(), 0);
  out.backward();  // is served all the same
  EXPECT_EQ(scope.backward_calls(), 1);
}

TEST_F(GradientTest, OfTensorsThatWereChangedAreRefusedByPyTorch) {
  const SdpaInput input = Leaves(Input());
  const ContextParallel scope(client());
  const at::Tensor query = input.query * 1;
  const at::Tensor out = Sdpa({query, input.key, input.value}).sum();
  query.add_(1);
  EXPECT_THROW(out.backward(), c10::Error);
  EXPECT_EQ(scope.backward_calls(), 0);
}

// A model of two layers, trained for some steps: its weights afterwards.
std::vector<at::Tensor> Trained(bool scripted) {
  at::manual_seed(3);
  const auto weight = [](int64_t in, int64_t out) {
    return (at::randn({in, out}, at::kDouble) / 4).requires_grad_();
  };
  std::vector<at::Tensor> weights = {weight(16, 32), weight(16, 16), weight(16, 32),
                                     weight(16, 16)};
  const at::Tensor x = at::randn({20, 16}, at::kDouble), wanted = at::randn({20, 16}, at::kDouble);
  torch::jit::Module layer("layer");
  layer.define(R"(
def forward(self, x, into, back):
    heads = torch.matmul(x, into).reshape(20, 8, 4).transpose(0, 1).unsqueeze(0)
    y = torch.scaled_dot_product_attention(
        heads[:, :4], heads[:, 4:6], heads[:, 6:], is_causal=True, enable_gqa=True)
    return x + torch.matmul(y.squeeze(0).transpose(0, 1).reshape(20, 16), back)
)");
  const auto run = [&](const at::Tensor& in, const at::Tensor& into, const at::Tensor& back) {
    if (scripted) return layer.forward({in, into, back}).toTensor();
    const at::Tensor heads = in.matmul(into).reshape({20, 8, 4}).transpose(0, 1).unsqueeze(0);
    const at::Tensor y = at::scaled_dot_product_attention(
        heads.narrow(1, 0, 4), heads.narrow(1, 4, 2), heads.narrow(1, 6, 2), {}, 0.0,
        /*is_causal=*/true, {}, /*enable_gqa=*/true);
    return in + y.squeeze(0).transpose(0, 1).reshape({20, 16}).matmul(back);
  };
  for (int step = 0; step < 5; ++step) {
    const at::Tensor y = run(run(x, weights[0], weights[1]), weights[2], weights[3]);
    (y - wanted).square().mean().backward();
    const c10::NoGradGuard no_grad;
    for (at::Tensor& tensor : weights) {
      tensor.sub_(tensor.grad(), 0.5);
      tensor.mutable_grad().zero_();
    }
  }
  return weights;
}

TEST_F(GradientTest, TrainAModelAsPyTorchDoes) {
  const std::vector<at::Tensor> right = Trained(false);
  for (const bool scripted : {false, true}) {
    const ContextParallel scope(client());
    const std::vector<at::Tensor> given = Trained(scripted);
    EXPECT_EQ(scope.calls(), 10);
    EXPECT_EQ(scope.backward_calls(), 10);
    for (size_t i = 0; i < right.size(); ++i)
      EXPECT_EQ(WhatDiffers(given[i], right[i], at::kDouble, 1e-11), "") << scripted << i;
  }
}

TEST(Gradient, OfAServiceThatIsGoneEndsTheBackwardPass) {
  Cluster cluster({.workers = 1});
  ContextParallelOptions options;
  options.call.max_attempts = 1;
  const at::Tensor x = at::randn({1, 2, 9, 8}).requires_grad_();
  at::Tensor out;
  {
    const ContextParallel scope(cluster.NewClient(), options);
    out = Sdpa({x, x, x}).sum();
  }
  cluster.server().Kill();
  ExpectRefused([&] { out.backward({}, /*retain_graph=*/true); }, absl::StatusCode::kUnavailable,
                "UNAVAILABLE");
  EXPECT_FALSE(x.grad().defined());
}

}  // namespace
}  // namespace ringserve::test
