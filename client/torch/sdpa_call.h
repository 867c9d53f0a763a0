// One call of scaled_dot_product_attention in the service's words.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include <ATen/core/Tensor.h>

#include "absl/status/statusor.h"
#include "ringserve/torch.h"
#include "ringserve/v1/attention.pb.h"

namespace ringserve {

// Names and meaning are PyTorch's.
struct SdpaArguments {
  const at::Tensor &query, &key, &value;
  const std::optional<at::Tensor>& attn_mask;
  double dropout_p;
  bool is_causal;
  std::optional<double> scale;
  bool enable_gqa;

  bool has_mask() const { return attn_mask.has_value() && attn_mask->defined(); }
};

struct SdpaCall {
  v1::AttendHeader header;
  // Dense [B, H, S, D] of the header's dtype, and functions of the arguments that autograd knows.
  at::Tensor q, k, v;
  at::Tensor bias;  // dense, as the header says; undefined: none
  // What the caller gets: sizes and type of the result.
  std::vector<int64_t> out_sizes;
  at::ScalarType out_type;

  // There is something to compute.
  bool nonempty() const;
  // A gradient will be asked for.
  bool differentiable() const;
};

// UNIMPLEMENTED: only PyTorch computes this; names the argument. INVALID_ARGUMENT: PyTorch refuses
// it, too, or is_causal contradicts the scope's masks. Sizes that do not broadcast: c10::Error.
absl::StatusOr<SdpaCall> MakeSdpaCall(const SdpaArguments& arguments,
                                      const ContextParallelOptions& options);

}  // namespace ringserve
