// Calls of scaled_dot_product_attention against a real service, judged by PyTorch's own in fp64.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "ringserve/torch.h"
#include "tests/support/cluster.h"

namespace ringserve::test {

// Names are PyTorch's.
struct SdpaInput {
  at::Tensor query, key, value;
  std::optional<at::Tensor> attn_mask = std::nullopt;
  bool is_causal = false;
  std::optional<double> scale = std::nullopt;
  bool enable_gqa = false;
  double dropout_p = 0;
};

at::Tensor Sdpa(const SdpaInput& input);

// The same numbers in fp64; boolean masks stay.
SdpaInput InDouble(SdpaInput input);

// Of outputs of about 1, by what rounding of inputs and outputs does.
double ToleranceOf(at::ScalarType type);

// Empty where `given` has type and sizes of `right`, or type `type`, and differs from it at most by
// `tolerance`.
std::string WhatDiffers(const at::Tensor& given, const at::Tensor& right, at::ScalarType type,
                        double tolerance);

// One cluster of two workers for the tests of a suite.
class ServedTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite();
  static void TearDownTestSuite();
  void SetUp() override;
  void TearDown() override;

  static const std::shared_ptr<Client>& client() { return client_; }
  static at::Tensor Randn(at::IntArrayRef sizes, at::ScalarType type = at::kFloat);

  // Served in one call, with PyTorch's result (of `same`, where scope and call say it in parts).
  static void ExpectServed(const SdpaInput& input, const ContextParallelOptions& options = {},
                           const std::optional<SdpaInput>& same = std::nullopt);

 private:
  static Cluster* cluster_;
  static std::shared_ptr<Client> client_;
};

// `call` throws ContextParallelError with this status, the message holding `words`.
void ExpectRefused(const std::function<void()>& call, absl::StatusCode code,
                   const std::string& words);

}  // namespace ringserve::test
