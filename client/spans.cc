#include "client/spans.h"

#include <cstdint>
#include <initializer_list>

#include "absl/strings/str_cat.h"
#include "proto/tensor_shape.h"
#include "proto/validate.h"

namespace ringserve {
namespace {

// Dimensions, and what else says how many bytes there are: whether a mask is served is for the
// server to say.
v1::AttentionSpec DimensionsOf(const v1::AttentionSpec& spec) {
  v1::AttentionSpec dims;
  dims.set_batch(spec.batch());
  dims.set_q_heads(spec.q_heads());
  dims.set_kv_heads(spec.kv_heads());
  dims.set_q_len(spec.q_len());
  dims.set_kv_len(spec.kv_len());
  dims.set_head_dim(spec.head_dim());
  dims.set_value_dim(spec.value_dim());
  dims.set_dtype(spec.dtype());
  dims.set_tensor_layout(spec.tensor_layout());
  if (spec.has_bias()) *dims.mutable_bias() = spec.bias();
  dims.set_alibi_slopes(spec.alibi_slopes());
  dims.set_sink_logits(spec.sink_logits());
  return dims;
}

template <typename Span>
struct Expected {
  v1::TensorId tensor;
  Span span;
  uint64_t bytes;
};

template <typename Span>
absl::Status CheckSize(const char* whole, const Expected<Span>& tensor) {
  if (tensor.span.size() == tensor.bytes) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(whole, ".", TensorName(tensor.tensor), " has ",
                                                 tensor.span.size(), " bytes: the spec says ",
                                                 tensor.bytes));
}

bool Overlap(std::span<const std::byte> a, std::span<const std::byte> b) {
  return !a.empty() && !b.empty() && a.data() < b.data() + b.size() &&
         b.data() < a.data() + a.size();
}

absl::StatusOr<CallSpans> Checked(
    std::initializer_list<Expected<std::span<const std::byte>>> inputs,
    std::initializer_list<Expected<std::span<std::byte>>> outputs) {
  CallSpans spans;
  for (const auto& input : inputs) {
    const absl::Status status = CheckSize("inputs", input);
    if (!status.ok()) return status;
    if (!input.span.empty()) spans.inputs.push_back({input.tensor, input.span});
  }
  for (const auto& output : outputs) {
    const absl::Status status = CheckSize("outputs", output);
    if (!status.ok()) return status;
    for (const CallSpans::Input& input : spans.inputs) {
      if (Overlap(output.span, input.bytes))
        return absl::InvalidArgumentError("an output overlaps an input");
    }
    for (const CallSpans::Output& other : spans.outputs) {
      if (!Overlap(output.span, other.bytes)) continue;
      return absl::InvalidArgumentError(absl::StrCat(
          "outputs.", TensorName(other.tensor), " overlaps outputs.", TensorName(output.tensor)));
    }
    if (!output.span.empty()) spans.outputs.push_back({output.tensor, output.span});
  }
  return spans;
}

}  // namespace

uint64_t CallSpans::bytes() const {
  uint64_t total = 0;
  for (const Input& input : inputs) total += input.bytes.size();
  for (const Output& output : outputs) total += output.bytes.size();
  return total;
}

absl::StatusOr<TensorBytes> BytesOf(const v1::AttentionSpec& spec) {
  const v1::AttentionSpec dims = DimensionsOf(spec);
  const absl::Status status = ValidateSpec(dims);
  if (!status.ok()) return status;
  const auto bytes = [&](v1::TensorId tensor, bool has = true) {
    return has ? ShapeOf(tensor, dims).bytes() : 0;
  };
  return TensorBytes{.q = bytes(v1::TENSOR_ID_Q),
                     .k = bytes(v1::TENSOR_ID_K),
                     .v = bytes(v1::TENSOR_ID_V),
                     .out = bytes(v1::TENSOR_ID_OUT),
                     .lse = bytes(v1::TENSOR_ID_LSE),
                     .bias = bytes(v1::TENSOR_ID_BIAS, dims.has_bias()),
                     .alibi_slopes = bytes(v1::TENSOR_ID_ALIBI_SLOPES, dims.alibi_slopes()),
                     .sink_logits = bytes(v1::TENSOR_ID_SINK_LOGITS, dims.sink_logits())};
}

absl::StatusOr<CallSpans> SpansOf(const v1::AttendHeader& header, const AttendInputs& inputs,
                                  const AttendOutputs& outputs) {
  const absl::StatusOr<TensorBytes> bytes = BytesOf(header.spec());
  if (!bytes.ok()) return bytes.status();
  const bool return_lse = header.options().return_lse();
  if (!return_lse && !outputs.lse.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("outputs.lse has ", outputs.lse.size(),
                     " bytes: it must be empty unless options.return_lse is set"));
  }
  return Checked({{v1::TENSOR_ID_Q, inputs.q, bytes->q},
                  {v1::TENSOR_ID_K, inputs.k, bytes->k},
                  {v1::TENSOR_ID_V, inputs.v, bytes->v},
                  {v1::TENSOR_ID_ALIBI_SLOPES, inputs.alibi_slopes, bytes->alibi_slopes},
                  {v1::TENSOR_ID_SINK_LOGITS, inputs.sink_logits, bytes->sink_logits},
                  {v1::TENSOR_ID_BIAS, inputs.bias, bytes->bias}},
                 {{v1::TENSOR_ID_OUT, outputs.out, bytes->out},
                  {v1::TENSOR_ID_LSE, outputs.lse, return_lse ? bytes->lse : 0}});
}

absl::StatusOr<CallSpans> SpansOf(const v1::AttendHeader& header, const BackwardInputs& inputs,
                                  const BackwardOutputs& outputs) {
  const absl::StatusOr<TensorBytes> bytes = BytesOf(header.spec());
  if (!bytes.ok()) return bytes.status();
  return Checked({{v1::TENSOR_ID_Q, inputs.q, bytes->q},
                  {v1::TENSOR_ID_K, inputs.k, bytes->k},
                  {v1::TENSOR_ID_V, inputs.v, bytes->v},
                  {v1::TENSOR_ID_OUT, inputs.out, bytes->out},
                  {v1::TENSOR_ID_LSE, inputs.lse, bytes->lse},
                  {v1::TENSOR_ID_D_OUT, inputs.d_out, bytes->out},
                  {v1::TENSOR_ID_D_LSE, inputs.d_lse, inputs.d_lse.empty() ? 0 : bytes->lse},
                  {v1::TENSOR_ID_ALIBI_SLOPES, inputs.alibi_slopes, bytes->alibi_slopes},
                  {v1::TENSOR_ID_SINK_LOGITS, inputs.sink_logits, bytes->sink_logits},
                  {v1::TENSOR_ID_BIAS, inputs.bias, bytes->bias}},
                 {{v1::TENSOR_ID_D_Q, outputs.d_q, bytes->q},
                  {v1::TENSOR_ID_D_K, outputs.d_k, bytes->k},
                  {v1::TENSOR_ID_D_V, outputs.d_v, bytes->v},
                  {v1::TENSOR_ID_D_SINK_LOGITS, outputs.d_sink_logits, bytes->sink_logits}});
}

}  // namespace ringserve
