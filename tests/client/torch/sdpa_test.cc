// What a call's arguments mean in a scope: the same as in PyTorch.
#include <algorithm>
#include <limits>
#include <vector>

#include "tests/client/torch/served.h"

namespace ringserve::test {
namespace {

constexpr at::ScalarType kTypes[] = {at::kFloat, at::kDouble, at::kBFloat16, at::kHalf};
constexpr double kInfinity = std::numeric_limits<double>::infinity();

class SdpaTest : public ServedTest {
 protected:
  // Four heads of 33 queries and 45 keys, unless said otherwise.
  static SdpaInput Input(std::vector<int64_t> lead = {2}, at::ScalarType type = at::kFloat,
                         int64_t kv_heads = 4) {
    const auto sizes = [&](int64_t heads, int64_t length, int64_t dim) {
      std::vector<int64_t> all = lead;
      all.insert(all.end(), {heads, length, dim});
      return all;
    };
    return {Randn(sizes(4, 33, 16), type), Randn(sizes(kv_heads, 45, 16), type),
            Randn(sizes(kv_heads, 45, 16), type)};
  }
};

TEST_F(SdpaTest, EveryTypeIsServed) {
  for (const at::ScalarType type : kTypes) {
    SdpaInput input = Input({2}, type);
    ExpectServed(input);
    input.is_causal = true;
    ExpectServed(input);
  }
}

TEST_F(SdpaTest, CausalAndScaleMeanWhatTheyMeanInPyTorch) {
  SdpaInput input = Input();
  input.scale = 0.3;
  ExpectServed(input);
  input.is_causal = true;
  ExpectServed(input);
  std::swap(input.query, input.key);  // more queries than keys
  input.value = Randn({2, 4, 33, 5});
  ExpectServed(input);
}

TEST_F(SdpaTest, GroupedQueriesTakeTheirHeads) {
  for (const at::ScalarType type : kTypes) {
    for (const int64_t kv_heads : {1, 2, 4}) {
      SdpaInput input = Input({2}, type, kv_heads);
      input.enable_gqa = true;
      input.is_causal = kv_heads == 2;
      ExpectServed(input);
    }
  }
  SdpaInput input = Input({2}, at::kFloat, 2);
  input.value = Randn({2, 1, 45, 16});
  input.enable_gqa = true;
  ExpectServed(input);
}

TEST_F(SdpaTest, LeadingDimensionsAreKept) {
  for (const std::vector<int64_t>& lead : std::vector<std::vector<int64_t>>{{}, {1}, {3}, {2, 3}})
    ExpectServed(Input(lead));
  SdpaInput input = Input({});
  for (at::Tensor* tensor : {&input.query, &input.key, &input.value}) *tensor = (*tensor)[0];
  ExpectServed(input);
}

TEST_F(SdpaTest, WhatBroadcastsIsBroadcast) {
  const SdpaInput input = Input({3});
  ExpectServed({input.query, input.key.narrow(0, 0, 1), input.value});
  ExpectServed({input.query.narrow(0, 0, 1), input.key, input.value});
  ExpectServed({input.query, input.key.narrow(1, 0, 1), input.value.narrow(1, 0, 1)});
  ExpectServed({input.query, input.key.narrow(1, 0, 1), input.value});
  ExpectServed({input.query.narrow(1, 0, 1), input.key, input.value});
  ExpectServed({input.query, input.key[0], input.value[0]});
  ExpectServed({input.query[0][0], input.key, input.value});
}

TEST_F(SdpaTest, ViewsAreReadAsTheyAre) {
  const SdpaInput input = Input();
  const auto token_major = [](const at::Tensor& tensor) {
    return tensor.transpose(1, 2).contiguous().transpose(1, 2);
  };
  ExpectServed({token_major(input.query), token_major(input.key), token_major(input.value)});
  ExpectServed({input.query.flip(2), input.key.slice(3, 0, 16, 2).repeat({1, 1, 1, 2}),
                input.value.slice(3, 0, 5)});
  ExpectServed({at::_neg_view(input.query), input.key, at::_neg_view(input.value)});
}

TEST_F(SdpaTest, BooleanMasksThatAreBandsAreServedInEveryShape) {
  const std::vector<int64_t> shapes[] = {{33, 45},       {1, 45},        {33, 1},
                                         {3, 1, 1, 45},  {3, 1, 33, 45}, {1, 4, 33, 45},
                                         {3, 4, 33, 45}, {1, 1, 33, 45}};
  for (const std::vector<int64_t>& shape : shapes) {
    SdpaInput input = Input({3});
    at::Tensor mask = at::ones(shape, at::kBool).tril(3);
    mask.narrow(-1, 0, std::min<int64_t>(shape.back(), 9)).fill_(true);
    if (shape.size() == 4 && shape[0] == 3) mask[1].narrow(-1, 20, 25).fill_(false);
    input.attn_mask = mask;
    ExpectServed(input);
  }
}

TEST_F(SdpaTest, MasksThatAreBandsAreNotUploaded) {
  SdpaInput input = Input();
  const uint64_t tensors = input.query.nbytes() + input.key.nbytes() + input.value.nbytes();
  const at::Tensor causal = at::ones({2, 4, 33, 45}, at::kBool).tril();
  at::Tensor numbers = at::zeros({33, 45});
  numbers.masked_fill_(causal[0][0].logical_not(), -kInfinity);
  for (const at::Tensor& mask : {causal, numbers}) {
    input.attn_mask = mask;
    const ContextParallel scope(client());
    Sdpa(input);
    ASSERT_TRUE(scope.statistics().has_value());
    EXPECT_EQ(scope.statistics()->upload_bytes(), tensors);
  }
}

TEST_F(SdpaTest, OtherMasksAreServedAsABias) {
  const std::vector<int64_t> shapes[] = {{33, 45},       {1, 4, 33, 45}, {2, 1, 33, 45},
                                         {2, 4, 33, 45}, {2, 1, 1, 45},  {33, 1}};
  for (const std::vector<int64_t>& shape : shapes) {
    SdpaInput input = Input();
    input.attn_mask = Randn(shape);
    ExpectServed(input);
    input.attn_mask = at::rand(shape) < 0.7;
    ExpectServed(input);
    input = Input({2}, at::kBFloat16);
    input.attn_mask = Randn(shape, at::kBFloat16);
    ExpectServed(input);
  }
  SdpaInput input = Input({2, 3});
  input.attn_mask = Randn({2, 1, 4, 33, 45});
  ExpectServed(input);
}

TEST_F(SdpaTest, ABiasOfFloat32BesideHalvesIsNotRounded) {
  for (const at::ScalarType type : {at::kBFloat16, at::kHalf}) {
    SdpaInput input = Input({2}, type);
    input.attn_mask = 300 + Randn({33, 45});  // differences far below the steps of the type
    ExpectServed(input);
    input.attn_mask = Randn({33, 45}, type).to(at::kFloat);
    ExpectServed(input);
  }
  SdpaInput input = Input({2}, at::kDouble);
  input.attn_mask = Randn({33, 45});
  ExpectServed(input);
}

TEST_F(SdpaTest, NumbersThatOnlyShowOrHideAreAMask) {
  SdpaInput input = Input();
  input.attn_mask = at::full({33, 45}, -kInfinity).triu(1);
  ExpectServed(input);
}

TEST_F(SdpaTest, RowsThatSeeNothingAreZero) {
  SdpaInput input = Input();
  at::Tensor mask = at::ones({33, 45}, at::kBool);
  mask[7].fill_(false);
  input.attn_mask = mask;
  ExpectServed(input);
  input.attn_mask = at::zeros({33, 45}, at::kBool);
  ExpectServed(input);
}

TEST_F(SdpaTest, TheScopesMasksHoldBesideTheCallsOwn) {
  const at::Tensor band = at::ones({33, 33}, at::kBool).tril().triu(-7);
  v1::Mask window;
  window.mutable_window()->set_left(7);
  window.mutable_window()->set_right(0);
  SdpaInput input = Input();
  input.key = Randn({2, 4, 33, 16});
  input.value = Randn({2, 4, 33, 16});
  SdpaInput same = input;
  same.attn_mask = band;
  ExpectServed(input, {.masks = {window}}, same);
  window.mutable_window()->clear_right();
  input.is_causal = true;
  ExpectServed(input, {.masks = {window}}, same);

  input.is_causal = false;
  for (const at::Tensor& mask :
       {at::ones({33, 33}, at::kBool).tril(), at::rand({33, 33}) < 0.7, Randn({33, 33})}) {
    input.attn_mask = mask;
    const at::Tensor seen = at::ones({33, 33}, at::kBool).triu(-7);
    same.attn_mask = mask.scalar_type() == at::kBool
                         ? mask.logical_and(seen)
                         : mask.masked_fill(seen.logical_not(), -kInfinity);
    ExpectServed(input, {.masks = {window}}, same);
  }
  // Bands count from the sequence's start, whatever the scope's documents.
  v1::Mask documents;
  documents.mutable_documents()->mutable_q_lengths()->Add(20);
  documents.mutable_documents()->mutable_q_lengths()->Add(13);
  input.attn_mask = at::ones({33, 33}, at::kBool).tril().triu(-9);
  same.attn_mask = input.attn_mask->clone();
  same.attn_mask->narrow(0, 20, 13).narrow(1, 0, 20).fill_(false);
  ExpectServed(input, {.masks = {documents}}, same);
  // One per batch row, of the scope and of the call.
  v1::Mask full;
  input.attn_mask = at::ones({2, 1, 1, 33}, at::kBool);
  (*input.attn_mask)[1].narrow(-1, 20, 13).fill_(false);
  same.attn_mask = at::ones({2, 1, 33, 33}, at::kBool);
  (*same.attn_mask)[0].triu_(-7);
  (*same.attn_mask)[1].narrow(-1, 20, 13).fill_(false);
  ExpectServed(input, {.masks = {window, full}}, same);
}

TEST_F(SdpaTest, HowItIsComputedIsTheScopesChoice) {
  ContextParallelOptions options;
  options.attention.set_balancer(v1::BALANCER_HEAD_TAIL);
  options.attention.set_rotate(v1::ROTATE_METHOD_ALL_GATHER);
  options.attention.set_workers(2);
  SdpaInput input = Input();
  input.is_causal = true;
  const ContextParallel scope(client(), options);
  Sdpa(input);
  ASSERT_TRUE(scope.statistics().has_value());
  const v1::PlanSummary plan = scope.statistics()->plan();
  EXPECT_EQ(plan.balancer(), v1::BALANCER_HEAD_TAIL);
  EXPECT_EQ(plan.rotate(), v1::ROTATE_METHOD_ALL_GATHER);
  EXPECT_EQ(plan.workers(), 2);
}

TEST_F(SdpaTest, WhereNothingIsToBeComputedNothingIsAsked) {
  const ContextParallel scope(client());
  SdpaInput input = Input();
  for (at::Tensor* tensor : {&input.query, &input.key, &input.value})
    *tensor = tensor->narrow(0, 0, 0);
  EXPECT_EQ(Sdpa(input).sizes(), at::IntArrayRef({0, 4, 33, 16}));
  input = Input();
  input.query = input.query.narrow(2, 0, 0);
  EXPECT_EQ(Sdpa(input).sizes(), at::IntArrayRef({2, 4, 0, 16}));
  EXPECT_EQ(scope.calls(), 0);
  input = Input();
  input.key = input.key.narrow(2, 0, 0);
  input.value = input.value.narrow(2, 0, 0);
  ExpectRefused([&] { Sdpa(input); }, absl::StatusCode::kUnimplemented, "without keys");
}

}  // namespace
}  // namespace ringserve::test
