// What a scope does not serve: it throws, or runs here and says so once. No service is asked.
#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <c10/util/Exception.h>
#include <gmock/gmock.h>

#include "tests/client/torch/served.h"

namespace ringserve::test {
namespace {

using absl::StatusCode;
using ::testing::HasSubstr;

std::shared_ptr<Client> NobodysClient() { return *Client::Connect({.server = "127.0.0.1:1"}); }

SdpaInput Three(const at::Tensor& tensor) { return {tensor, tensor, tensor}; }

SdpaInput Plain() { return Three(at::randn({1, 2, 9, 8})); }

TEST(Refusal, NamesWhatOnlyPyTorchComputes) {
  const ContextParallel scope(NobodysClient());
  const auto refused = [](const SdpaInput& input, const std::string& words) {
    ExpectRefused([&] { Sdpa(input); }, StatusCode::kUnimplemented, words);
  };
  SdpaInput input = Plain();
  input.dropout_p = 0.1;
  refused(input, "dropout_p is 0.1");
  input = Plain();
  input.attn_mask = at::zeros({9, 9}).requires_grad_();
  refused(input, "attn_mask requires a gradient");
  input = Plain();
  input.attn_mask = at::zeros({1, 2, 9, 9});
  input.query = input.key = input.value = at::randn({2, 9, 8});
  refused(input, "attn_mask has 4 dimensions");
  refused(Three(at::randn({1, 2, 9, 8}, at::kComplexFloat)), "query is ComplexFloat");
  refused(Three(at::ones({1, 2, 9, 8}, at::kLong)), "query is Long");
  refused(Three(at::empty({1, 2, 9, 8}, at::kMeta)), "query is on meta");
  refused(Three(at::randn({9, 8}).to_sparse()), "query is sparse");
  refused(Three(at::_nested_tensor_from_tensor_list({at::randn({2, 3, 8}), at::randn({2, 5, 8})})),
          "query is nested");
}

TEST(Refusal, NamesWhatPyTorchRefusesToo) {
  const ContextParallel scope(NobodysClient());
  const auto refused = [](const SdpaInput& input, const std::string& words) {
    ExpectRefused([&] { Sdpa(input); }, StatusCode::kInvalidArgument, words);
  };
  SdpaInput input = Plain();
  input.attn_mask = at::zeros({9, 9});
  input.is_causal = true;
  refused(input, "attn_mask and is_causal are both given");
  input = Plain();
  input.attn_mask = at::zeros({9, 8});
  refused(input, "must broadcast to");
  input.attn_mask = at::ones({9}, at::kBool);
  refused(input, "attn_mask is Bool [9]");
  input.attn_mask = at::zeros({9, 9}, at::kDouble);
  refused(input, "attn_mask is Double");
  input = Plain();
  input.key = input.key.to(at::kDouble);
  refused(input, "key is Double");
  input = Plain();
  input.value = input.value[0][0][0];
  refused(input, "at least 2 dimensions");
  input = Plain();
  input.key = at::randn({1, 2, 9, 7});
  refused(input, "share the last size");
  input.key = at::randn({1, 2, 8, 8});
  refused(input, "share the last size");
  input = Plain();
  input.query = at::randn({1, 4, 9, 8});
  refused(input, "that takes enable_gqa");
  input.enable_gqa = true;
  input.query = at::randn({1, 5, 9, 8});
  refused(input, "must be a multiple");
  input = Plain();
  input.key = at::randn({2, 2, 9, 8});
  input.value = at::randn({3, 2, 9, 8});
  EXPECT_THROW(Sdpa(input), c10::Error);
}

TEST(Refusal, CausalThatContradictsTheScopesMask) {
  std::vector<v1::Mask> masks(4);
  masks[0].set_bottom_right(true);
  masks[1].set_q_offset(3);
  masks[2].set_causal(true);
  masks[2].set_prefix(2);
  masks[3].mutable_documents()->add_q_lengths(9);
  masks[3].mutable_documents()->add_kv_lengths(8);
  SdpaInput input = Plain();
  input.is_causal = true;
  for (const v1::Mask& mask : masks) {
    const ContextParallel scope(NobodysClient(), {.masks = {mask}});
    ExpectRefused([&] { Sdpa(input); }, StatusCode::kInvalidArgument, "cannot be joined");
  }
}

TEST(Refusal, OptionsThatContradictEachOther) {
  const auto refused = [](const ContextParallelOptions& options, const std::string& words) {
    ExpectRefused([&] { ContextParallel(NobodysClient(), options); }, StatusCode::kInvalidArgument,
                  words);
    ExpectRefused([&] { EnableContextParallelDispatcher(NobodysClient(), options); },
                  StatusCode::kInvalidArgument, words);
  };
  refused({.masks = {v1::Mask()}, .local_fallback = true}, "local_fallback");
  ContextParallelOptions options;
  options.attention.set_return_lse(true);
  refused(options, "return_lse");
  ExpectRefused([] { ContextParallel(nullptr); }, StatusCode::kInvalidArgument, "client is null");
}

struct Warnings : c10::WarningHandler {
  void process(const c10::Warning& warning) override { all.push_back(warning.msg()); }
  std::vector<std::string> all;
};

TEST(Refusal, RunsHereWithAFallbackAndSaysSoOnce) {
  Warnings warnings;
  const c10::WarningUtils::WarningHandlerGuard guard(&warnings);
  SdpaInput input = Plain();
  input.attn_mask = at::randn({9, 9}).requires_grad_();
  const at::Tensor right = Sdpa(input);
  const ContextParallel scope(NobodysClient(), {.local_fallback = true});
  for (int i = 0; i < 2; ++i) {
    const at::Tensor out = Sdpa(input);
    EXPECT_TRUE(out.equal(right));
    EXPECT_TRUE(out.requires_grad());
  }
  ASSERT_EQ(warnings.all.size(), 1u);
  EXPECT_THAT(warnings.all[0], HasSubstr("runs locally: attn_mask requires a gradient"));
  // What PyTorch refuses is refused.
  input.is_causal = true;
  ExpectRefused([&] { Sdpa(input); }, StatusCode::kInvalidArgument, "both given");
  EXPECT_EQ(scope.calls(), 0);
}

}  // namespace
}  // namespace ringserve::test
