#include "client/torch/attention_function.h"

#include <cstddef>
#include <span>
#include <utility>

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/custom_class.h>

namespace ringserve {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Undefined tensors have none.
std::span<const std::byte> BytesOf(const Tensor& dense) {
  if (!dense.defined()) return {};
  return {static_cast<const std::byte*>(dense.const_data_ptr()), dense.nbytes()};
}

std::span<std::byte> WritableBytesOf(const Tensor& dense) {
  if (!dense.defined()) return {};
  return {static_cast<std::byte*>(dense.mutable_data_ptr()), dense.nbytes()};
}

// What a backward pass needs beside tensors.
struct Served : torch::CustomClassHolder {
  Served(std::shared_ptr<AttentionService> service, v1::AttendHeader header)
      : service(std::move(service)), header(std::move(header)) {}

  const std::shared_ptr<AttentionService> service;
  const v1::AttendHeader header;
};

struct Result {
  Tensor out, lse;  // lse only where header.options.return_lse
};

Result Forward(AttentionService& service, const v1::AttendHeader& header, const SdpaCall& call) {
  const auto& q = call.q;
  Result result{at::empty({q.size(0), q.size(1), q.size(2), call.v.size(3)}, q.options()), {}};
  if (header.options().return_lse()) {
    const at::ScalarType type = q.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
    result.lse = at::empty({q.size(0), q.size(1), q.size(2)}, q.options().dtype(type));
  }
  const absl::Status status = service.Attend(
      header,
      {.q = BytesOf(q), .k = BytesOf(call.k), .v = BytesOf(call.v), .bias = BytesOf(call.bias)},
      {.out = WritableBytesOf(result.out), .lse = WritableBytesOf(result.lse)});
  if (!status.ok()) throw ContextParallelError(status);
  return result;
}

// Function::apply hands tensors that it is to know over one by one.
class AttentionFunction : public torch::autograd::Function<AttentionFunction> {
 public:
  static Tensor forward(AutogradContext* context, const Tensor& q, const Tensor& k, const Tensor& v,
                        const std::shared_ptr<AttentionService>& service, const SdpaCall& call) {
    v1::AttendHeader header = call.header;
    header.mutable_options()->set_return_lse(true);
    const Result result = Forward(*service, header, call);
    context->save_for_backward({q, k, v, result.out, result.lse, call.bias});
    context->saved_data["served"] =
        c10::IValue::make_capsule(c10::make_intrusive<Served>(service, call.header));
    return result.out;
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    if (c10::GradMode::is_enabled()) {
      throw ContextParallelError(absl::UnimplementedError(
          "a gradient of a gradient (create_graph) is asked for: the service computes none"));
    }
    const auto served =
        c10::static_intrusive_pointer_cast<Served>(context->saved_data["served"].toCapsule());
    v1::AttendHeader header = served->header;
    // Pass-Q has no backward pass.
    if (header.options().rotate() == v1::ROTATE_METHOD_PASS_Q)
      header.mutable_options()->clear_rotate();
    const variable_list saved = context->get_saved_variables();
    const Tensor &q = saved[0], &k = saved[1], &v = saved[2];
    const Tensor d_out = gradients[0].resolve_neg().contiguous();
    const Tensor d_q = at::empty_like(q), d_k = at::empty_like(k), d_v = at::empty_like(v);
    const absl::Status status = served->service->AttendBackward(
        header,
        {.q = BytesOf(q),
         .k = BytesOf(k),
         .v = BytesOf(v),
         .out = BytesOf(saved[3]),
         .lse = BytesOf(saved[4]),
         .d_out = BytesOf(d_out),
         .bias = BytesOf(saved[5])},
        {.d_q = WritableBytesOf(d_q), .d_k = WritableBytesOf(d_k), .d_v = WritableBytesOf(d_v)});
    if (!status.ok()) throw ContextParallelError(status);
    return {d_q, d_k, d_v, {}, {}};  // none of service and call
  }
};

}  // namespace

Tensor Attend(const std::shared_ptr<AttentionService>& service, const SdpaCall& call) {
  if (!call.differentiable()) return Forward(*service, call.header, call).out;
  return AttentionFunction::apply(call.q, call.k, call.v, service, call);
}

}  // namespace ringserve
