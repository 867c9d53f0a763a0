// A causal model in TorchScript, run forward and backward here and with its attention served: the
// same numbers come out.
//
//   ringctl up --workers 2                          # in another terminal
//   context_parallel_example 127.0.0.1:7070 4096    # how many tokens
//
// Exit status 1 where the numbers differ.
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <functional>
#include <memory>
#include <stdexcept>
#include <utility>

#include <ATen/ATen.h>
#include <torch/csrc/jit/api/module.h>

#include "ringserve/torch.h"

namespace {

constexpr int64_t kLayers = 2, kDim = 256, kQueryHeads = 8, kKvHeads = 2, kHeadDim = 32;

// torch::jit::load would bring a saved one.
torch::jit::Module MakeModel() {
  torch::jit::Module model("model");
  const auto weights = [](int64_t in, int64_t out) {
    return (at::randn({kLayers, in, out}) / std::sqrt(static_cast<double>(in))).requires_grad_();
  };
  model.register_parameter("into", weights(kDim, (kQueryHeads + 2 * kKvHeads) * kHeadDim), false);
  model.register_parameter("back", weights(kQueryHeads * kHeadDim, kDim), false);
  model.define(R"(
def forward(self, x):
    for layer in range(2):
        y = torch.matmul(torch.layer_norm(x, [256]), self.into[layer])
        heads = y.reshape(-1, 12, 32).transpose(0, 1).unsqueeze(0)
        y = torch.scaled_dot_product_attention(
            heads[:, :8], heads[:, 8:10], heads[:, 10:], is_causal=True, enable_gqa=True)
        x = x + torch.matmul(y.squeeze(0).transpose(0, 1).reshape(-1, 256), self.back[layer])
    return x
)");
  return model;
}

double Seconds(const std::function<void()>& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

struct Pass {
  at::Tensor out, gradient;  // the latter of the weights `into`
  double seconds;
};

Pass ForwardAndBackward(torch::jit::Module& model, const at::Tensor& x) {
  Pass pass;
  const at::Tensor into = model.attr("into").toTensor();
  into.mutable_grad() = at::Tensor();
  pass.seconds = Seconds([&] {
    pass.out = model.forward({x}).toTensor();
    pass.out.square().mean().backward();
  });
  pass.gradient = into.grad();
  return pass;
}

double Difference(const at::Tensor& a, const at::Tensor& b) {
  return ((a - b).abs().max() / a.abs().max()).item<double>();
}

int Run(const char* server, int64_t tokens) {
  auto connected = ringserve::Client::Connect({.server = server});
  if (!connected.ok()) throw std::runtime_error(connected.status().ToString());
  const std::shared_ptr<ringserve::Client> client = *std::move(connected);
  torch::jit::Module model = MakeModel();
  const at::Tensor x = at::randn({tokens, kDim});

  const Pass here = ForwardAndBackward(model, x);
  const ringserve::ContextParallel scope(client);
  const Pass served = ForwardAndBackward(model, x);

  std::printf("%ld tokens, %ld layers of %ld query and %ld K/V heads, causal\n", tokens, kLayers,
              kQueryHeads, kKvHeads);
  std::printf("here %.3f s; served %.3f s: %ld calls and %ld backward, the last by %d workers\n",
              here.seconds, served.seconds, scope.calls(), scope.backward_calls(),
              scope.statistics()->plan().workers());
  const double out = Difference(here.out, served.out);
  const double gradient = Difference(here.gradient, served.gradient);
  std::printf("largest difference, of the largest number: out %.1e, gradient of weights %.1e\n",
              out, gradient);
  const bool all_served = scope.calls() == kLayers && scope.backward_calls() == kLayers;
  return out < 1e-5 && gradient < 1e-5 && all_served ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  const int64_t tokens = argc == 3 ? std::atoll(argv[2]) : 0;
  if (tokens < 1) {
    std::fprintf(stderr, "usage: %s HOST:PORT TOKENS\n", argv[0]);
    return 2;
  }
  try {
    at::manual_seed(1);
    return Run(argv[1], tokens);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
