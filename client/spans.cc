#include "client/spans.h"

#include <cstdint>
#include <string>

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

absl::Status CheckSize(const char* name, uint64_t bytes, uint64_t expected) {
  if (bytes == expected) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(name, " has ", bytes, " bytes: the spec says ", expected));
}

bool Overlap(std::span<const std::byte> a, std::span<const std::byte> b) {
  return !a.empty() && !b.empty() && a.data() < b.data() + b.size() &&
         b.data() < a.data() + a.size();
}

}  // namespace

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

absl::Status CheckSpans(const v1::AttendHeader& header, const AttendInputs& inputs,
                        const AttendOutputs& outputs) {
  const absl::StatusOr<TensorBytes> bytes = BytesOf(header.spec());
  if (!bytes.ok()) return bytes.status();
  const bool return_lse = header.options().return_lse();
  if (!return_lse && !outputs.lse.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("outputs.lse has ", outputs.lse.size(),
                     " bytes: it must be empty unless options.return_lse is set"));
  }
  for (const absl::Status& status : {
           CheckSize("inputs.q", inputs.q.size(), bytes->q),
           CheckSize("inputs.k", inputs.k.size(), bytes->k),
           CheckSize("inputs.v", inputs.v.size(), bytes->v),
           CheckSize("inputs.bias", inputs.bias.size(), bytes->bias),
           CheckSize("inputs.alibi_slopes", inputs.alibi_slopes.size(), bytes->alibi_slopes),
           CheckSize("inputs.sink_logits", inputs.sink_logits.size(), bytes->sink_logits),
           CheckSize("outputs.out", outputs.out.size(), bytes->out),
           CheckSize("outputs.lse", outputs.lse.size(), return_lse ? bytes->lse : 0),
       }) {
    if (!status.ok()) return status;
  }
  for (const std::span<std::byte> output : {outputs.out, outputs.lse}) {
    for (const std::span<const std::byte> input :
         {inputs.q, inputs.k, inputs.v, inputs.bias, inputs.alibi_slopes, inputs.sink_logits}) {
      if (Overlap(output, input)) return absl::InvalidArgumentError("an output overlaps an input");
    }
  }
  if (Overlap(outputs.out, outputs.lse))
    return absl::InvalidArgumentError("outputs.out overlaps outputs.lse");
  return absl::OkStatus();
}

}  // namespace ringserve
