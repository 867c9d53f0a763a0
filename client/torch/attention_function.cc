#include "client/torch/attention_function.h"

#include <cstddef>
#include <span>

#include <ATen/ATen.h>

namespace ringserve {
namespace {

using at::Tensor;

// Undefined tensors have none.
std::span<const std::byte> BytesOf(const Tensor& dense) {
  if (!dense.defined()) return {};
  return {static_cast<const std::byte*>(dense.const_data_ptr()), dense.nbytes()};
}

std::span<std::byte> WritableBytesOf(const Tensor& dense) {
  if (!dense.defined()) return {};
  return {static_cast<std::byte*>(dense.mutable_data_ptr()), dense.nbytes()};
}

}  // namespace

Tensor Attend(const std::shared_ptr<AttentionService>& service, const SdpaCall& call) {
  if (call.differentiable()) {
    throw ContextParallelError(absl::UnimplementedError(
        "query, key or value requires a gradient: call it without (c10::NoGradGuard)"));
  }
  const Tensor& q = call.q;
  const Tensor out = at::empty({q.size(0), q.size(1), q.size(2), call.v.size(3)}, q.options());
  const absl::Status status = service->Attend(
      call.header,
      {.q = BytesOf(q), .k = BytesOf(call.k), .v = BytesOf(call.v), .bias = BytesOf(call.bias)},
      {.out = WritableBytesOf(out), .lse = {}});
  if (!status.ok()) throw ContextParallelError(status);
  return out;
}

}  // namespace ringserve
