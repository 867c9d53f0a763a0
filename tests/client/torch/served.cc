#include "tests/client/torch/served.h"

#include <ATen/Parallel.h>
#include <gmock/gmock.h>

namespace ringserve::test {

at::Tensor Sdpa(const SdpaInput& input) {
  return at::scaled_dot_product_attention(input.query, input.key, input.value, input.attn_mask,
                                          input.dropout_p, input.is_causal, input.scale,
                                          input.enable_gqa);
}

SdpaInput InDouble(SdpaInput input) {
  for (at::Tensor* tensor : {&input.query, &input.key, &input.value})
    *tensor = tensor->to(at::kDouble);
  if (input.attn_mask.has_value() && input.attn_mask->scalar_type() != at::kBool)
    input.attn_mask = input.attn_mask->to(at::kDouble);
  return input;
}

double ToleranceOf(at::ScalarType type) {
  switch (type) {
    case at::kDouble:
      return 1e-12;
    case at::kFloat:
      return 1e-5;
    case at::kHalf:
      return 2e-3;
    default:
      return 1.6e-2;
  }
}

std::string WhatDiffers(const at::Tensor& given, const at::Tensor& right, at::ScalarType type,
                        double tolerance) {
  if (given.scalar_type() != type || given.sizes() != right.sizes())
    return c10::str(given.scalar_type(), given.sizes(), " instead of ", type, right.sizes());
  if (given.numel() == 0) return "";
  const double difference = (given.to(at::kDouble) - right).abs().max().item<double>();
  return difference <= tolerance ? "" : c10::str("off by ", difference);  // not so, too, for NaN
}

Cluster* ServedTest::cluster_ = nullptr;
std::shared_ptr<Client> ServedTest::client_;

void ServedTest::SetUpTestSuite() {
  at::set_num_threads(1);
  cluster_ = new Cluster({.workers = 2});
  client_ = cluster_->NewClient();
}

void ServedTest::TearDownTestSuite() {
  client_ = nullptr;
  delete cluster_;
  cluster_ = nullptr;
}

void ServedTest::SetUp() { at::manual_seed(1); }

void ServedTest::TearDown() {
  EXPECT_TRUE(cluster_->AwaitIdle());
  if (HasFailure()) ADD_FAILURE() << cluster_->Logs();
}

at::Tensor ServedTest::Randn(at::IntArrayRef sizes, at::ScalarType type) {
  return at::randn(sizes, at::kDouble).to(type);
}

void ServedTest::ExpectServed(const SdpaInput& input, const ContextParallelOptions& options,
                              const std::optional<SdpaInput>& same) {
  at::Tensor out;
  {
    const ContextParallel scope(client_, options);
    ASSERT_NO_THROW(out = Sdpa(input)) << input.query.sizes() << input.key.sizes();
    EXPECT_EQ(scope.calls(), 1);
    ASSERT_TRUE(scope.statistics().has_value());
    EXPECT_GE(scope.statistics()->plan().workers(), 1);
  }
  const at::Tensor right = Sdpa(InDouble(same.value_or(input)));
  const at::ScalarType type = input.query.scalar_type();
  EXPECT_EQ(WhatDiffers(out, right, type, ToleranceOf(type)), "")
      << input.query.sizes() << input.key.sizes() << input.value.sizes();
}

void ExpectRefused(const std::function<void()>& call, absl::StatusCode code,
                   const std::string& words) {
  try {
    call();
    ADD_FAILURE() << "served; wanted: " << words;
  } catch (const ContextParallelError& error) {
    EXPECT_EQ(error.status().code(), code) << error.what();
    EXPECT_THAT(error.what(), ::testing::HasSubstr(words));
  }
}

}  // namespace ringserve::test
