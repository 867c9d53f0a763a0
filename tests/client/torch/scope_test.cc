// What scopes and the process-wide switch reach, and that they leave nothing behind.
#include <functional>
#include <future>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>

#include <ATen/Parallel.h>
#include <ATen/autocast_mode.h>
#include <c10/core/InferenceMode.h>
#include <torch/jit.h>

#include "tests/client/torch/served.h"

namespace ringserve::test {
namespace {

class ScopeTest : public ServedTest {
 protected:
  static SdpaInput Input() {
    return {Randn({1, 2, 9, 8}), Randn({1, 2, 9, 8}), Randn({1, 2, 9, 8})};
  }
};

// Runs `body` on another thread, to its end.
void OnAnotherThread(const std::function<void()>& body) { std::thread(body).join(); }

TEST_F(ScopeTest, ReachesItsOwnThreadAndNoOther) {
  const SdpaInput input = Input();
  const ContextParallel scope(client());
  Sdpa(input);
  EXPECT_EQ(scope.calls(), 1);
  OnAnotherThread([&] {
    Sdpa(input);
    EXPECT_EQ(scope.calls(), 1);
    const ContextParallel other(client());
    Sdpa(input);
    EXPECT_EQ(other.calls(), 1);
  });
  EXPECT_EQ(scope.calls(), 1);
}

TEST_F(ScopeTest, TheInnermostServes) {
  const SdpaInput input = Input();
  const ContextParallel outer(client());
  Sdpa(input);
  {
    const ContextParallel inner(client());
    Sdpa(input);
    EXPECT_EQ(inner.calls(), 1);
  }
  Sdpa(input);
  EXPECT_EQ(outer.calls(), 2);
}

TEST_F(ScopeTest, TasksOfLibTorchTakeItAlong) {
  const SdpaInput input = Input();
  const ContextParallel scope(client());
  std::promise<void> done;
  at::launch([&] {
    Sdpa(input);
    done.set_value();
  });
  done.get_future().get();
  EXPECT_EQ(scope.calls(), 1);
}

TEST_F(ScopeTest, NothingIsLeftOfItAfterAnException) {
  const SdpaInput input = Input();
  const ContextParallel outer(client());
  const auto fail = [&] {
    const ContextParallel inner(client());
    Sdpa(input);
    throw std::logic_error("the caller's");
  };
  EXPECT_THROW(fail(), std::logic_error);
  Sdpa(input);
  EXPECT_EQ(outer.calls(), 1);
}

constexpr char kModule[] = R"(
def forward(self, q, k, v):
    for i in range(3):
        q = torch.scaled_dot_product_attention(q, k, v, is_causal=True)
    return q
)";

TEST_F(ScopeTest, ReachesIntoTorchScript) {
  torch::jit::Module module("attention");
  module.define(kModule);
  const SdpaInput input = Input();
  const auto run = [&](const SdpaInput& in) {
    return module.forward({in.query, in.key, in.value}).toTensor();
  };
  const at::Tensor right = run(InDouble(input));
  const ContextParallel scope(client());
  // Its executor looks at first runs, and optimises later ones.
  for (int i = 0; i < 4; ++i)
    EXPECT_EQ(WhatDiffers(run(input), right, at::kFloat, ToleranceOf(at::kFloat)), "");
  EXPECT_EQ(scope.calls(), 12);
  const ContextParallel refusing(client());
  SdpaInput integers = input;
  integers.query = input.query.to(at::kLong);
  integers.key = input.key.to(at::kLong);
  integers.value = input.value.to(at::kLong);
  try {
    run(integers);
    ADD_FAILURE() << "served";
  } catch (const std::exception& error) {
    EXPECT_NE(std::string(error.what()).find("query is Long"), std::string::npos) << error.what();
  }
}

TEST_F(ScopeTest, AutocastAndInferenceModeActAsWithoutIt) {
  const SdpaInput input = Input();
  const ContextParallel scope(client());
  {
    const c10::InferenceMode inference;
    EXPECT_EQ(Sdpa(input).scalar_type(), at::kFloat);
  }
  at::autocast::set_autocast_enabled(at::kCPU, true);
  const at::Tensor out = Sdpa(input);
  at::autocast::set_autocast_enabled(at::kCPU, false);
  at::autocast::clear_cache();
  EXPECT_EQ(out.scalar_type(), at::kBFloat16);
  EXPECT_EQ(scope.calls(), 2);
}

TEST_F(ScopeTest, TheSwitchReachesEveryThreadAndIsCounted) {
  const SdpaInput input = Input();
  const std::shared_ptr<const ServedCalls> first = EnableContextParallelDispatcher(client());
  OnAnotherThread([&] { Sdpa(input); });
  EXPECT_EQ(first->calls(), 1);
  const std::shared_ptr<const ServedCalls> second = EnableContextParallelDispatcher(client());
  Sdpa(input);
  EXPECT_EQ(second->calls(), 1);
  {
    const ContextParallel scope(client());
    Sdpa(input);
    EXPECT_EQ(scope.calls(), 1);
  }
  OnAnotherThread([] { DisableContextParallelDispatcher(); });
  Sdpa(input);
  EXPECT_EQ(first->calls(), 2);
  DisableContextParallelDispatcher();
  Sdpa(input);
  EXPECT_EQ(first->calls(), 2);
  EXPECT_EQ(second->calls(), 1);
  ASSERT_TRUE(first->statistics().has_value());
  EXPECT_GE(first->statistics()->plan().workers(), 1);
  ExpectRefused([] { DisableContextParallelDispatcher(); }, absl::StatusCode::kFailedPrecondition,
                "not enabled");
}

TEST(Service, ThatIsGoneInTheMiddleEndsTheCallAndLeavesNothing) {
  at::set_num_threads(1);
  Cluster cluster({.workers = 1});
  const at::Tensor x = at::randn({1, 2, 9, 8});
  const SdpaInput input = {x, x, x};
  const at::Tensor right = Sdpa(InDouble(input));
  {
    ContextParallelOptions options;
    options.call.max_attempts = 1;
    options.call.deadline = std::chrono::seconds(60);
    options.local_fallback = true;  // is for what cannot be served, not for this
    const ContextParallel scope(cluster.NewClient(), options);
    Sdpa(input);
    cluster.server().Kill();
    ExpectRefused([&] { Sdpa(input); }, absl::StatusCode::kUnavailable, "UNAVAILABLE");
    EXPECT_EQ(scope.calls(), 1);
  }
  EXPECT_EQ(WhatDiffers(Sdpa(input), right, at::kFloat, ToleranceOf(at::kFloat)), "");
}

}  // namespace
}  // namespace ringserve::test
