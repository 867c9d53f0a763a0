// Calls a server that is not there from inside a scope, by the installed package and LibTorch
// alone.
#include <cstdio>
#include <memory>

#include <ATen/ATen.h>
#include <ringserve/torch.h>

int main() {
  std::shared_ptr<ringserve::Client> client =
      *ringserve::Client::Connect({.server = "127.0.0.1:1"});
  const at::Tensor x = at::randn({1, 2, 3, 4});
  try {
    const ringserve::ContextParallel scope(client, {.call = {.max_attempts = 1}});
    at::scaled_dot_product_attention(x, x, x);
  } catch (const ringserve::ContextParallelError& error) {
    std::printf("%s\n", error.what());
    return error.status().code() == absl::StatusCode::kUnavailable ? 0 : 1;
  }
  return 1;
}
