#include "tests/integration/backward_request.h"

#include <stdexcept>
#include <utility>

#include "absl/strings/str_cat.h"
#include "tests/integration/request.h"
#include "tests/support/backward_oracle.h"
#include "tests/support/elements.h"
#include "tests/support/random.h"

namespace ringserve::test {
namespace {

constexpr std::byte kUnwritten{0xFF};  // NaN in every type

std::vector<std::byte> RandomGradients(Random& random, uint64_t bytes, v1::DType dtype) {
  std::vector<double> values(ToDoubles(std::vector<std::byte>(bytes), dtype).size());
  for (double& value : values) value = random.Normal();
  return FromDoubles(values, dtype);
}

}  // namespace

BackwardRequest::BackwardRequest(Client& client, v1::AttendHeader header, uint64_t seed,
                                 bool with_d_lse, double gain)
    : header_(std::move(header)), tensors_(RandomInputs(header_.spec(), seed, gain)) {
  const v1::AttentionSpec& spec = header_.spec();
  const v1::DType wide = spec.dtype() == v1::DTYPE_F64 ? v1::DTYPE_F64 : v1::DTYPE_F32;
  const TensorBytes bytes = *BytesOf(spec);
  out_.resize(bytes.out);
  lse_.resize(bytes.lse);
  v1::AttendHeader forward = header_;
  forward.mutable_options()->set_return_lse(true);
  const absl::StatusOr<AttendResult> answer =
      client.Attend(forward,
                    {tensors_.q, tensors_.k, tensors_.v, tensors_.bias, tensors_.alibi_slopes,
                     tensors_.sink_logits},
                    {out_, lse_});
  if (!answer.ok()) throw std::runtime_error(answer.status().ToString());
  header_.mutable_options()->set_return_lse(false);
  Random random(seed + 1);
  d_out_ = RandomGradients(random, bytes.out, spec.dtype());
  if (with_d_lse) d_lse_ = RandomGradients(random, bytes.lse, wide);
}

BackwardInputs BackwardRequest::inputs() const {
  return {.q = tensors_.q,
          .k = tensors_.k,
          .v = tensors_.v,
          .out = out_,
          .lse = lse_,
          .d_out = d_out_,
          .d_lse = d_lse_,
          .bias = tensors_.bias,
          .alibi_slopes = tensors_.alibi_slopes,
          .sink_logits = tensors_.sink_logits};
}

v1::AttendHeader BackwardRequest::Named(const std::string& request_id, int workers) const {
  v1::AttendHeader header = header_;
  header.set_request_id(request_id);
  header.mutable_options()->set_workers(workers);
  return header;
}

absl::StatusOr<Gradients> BackwardRequest::AskOf(Client& client, const v1::AttendHeader& header,
                                                 const CallOptions& options) const {
  const TensorBytes bytes = *BytesOf(header.spec());
  Gradients gradients;
  gradients.d_q.assign(bytes.q, kUnwritten);
  gradients.d_k.assign(bytes.k, kUnwritten);
  gradients.d_v.assign(bytes.v, kUnwritten);
  gradients.d_sink_logits.assign(bytes.sink_logits, kUnwritten);
  absl::StatusOr<AttendResult> result = client.AttendBackward(
      header, inputs(), {gradients.d_q, gradients.d_k, gradients.d_v, gradients.d_sink_logits},
      options);
  if (!result.ok()) return result.status();
  gradients.statistics = std::move(result->statistics);
  gradients.attempts = result->attempts;
  return gradients;
}

std::string BackwardRequest::WhatIsWrong(const Gradients& gradients,
                                         const v1::AttendHeader& header) const {
  const v1::AttentionSpec& spec = header_.spec();
  const v1::DType dtype = spec.dtype();
  const ReferenceGradients expected =
      AttendBackward(spec, tensors_, d_out_, d_lse_, header_.options().lse_without_sinks());
  std::string wrong =
      absl::StrCat(CompareGradient("d_q", spec, expected, expected.d_q, gradients.d_q, dtype),
                   CompareGradient("d_k", spec, expected, expected.d_k, gradients.d_k, dtype),
                   CompareGradient("d_v", spec, expected, expected.d_v, gradients.d_v, dtype));
  if (spec.sink_logits()) {
    absl::StrAppend(&wrong, CompareGradient("d_sink_logits", spec, expected, expected.d_sinks,
                                            gradients.d_sink_logits, v1::DTYPE_F32));
  }
  const TensorBytes bytes = *BytesOf(spec);
  return absl::StrCat(wrong,
                      WhatIsWrongWithStatistics(
                          header, bytes.inputs() + 2 * bytes.out + bytes.lse + d_lse_.size(),
                          bytes.q + bytes.k + bytes.v + bytes.sink_logits, gradients.statistics));
}

}  // namespace ringserve::test
