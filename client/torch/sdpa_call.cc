#include "client/torch/sdpa_call.h"

#include <algorithm>
#include <functional>
#include <numeric>
#include <string>
#include <utility>

#include <ATen/ATen.h>
#include <ATen/ExpandUtils.h>
#include <ATen/TensorSubclassLikeUtils.h>
#include <c10/core/GradMode.h>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "client/torch/dense_mask.h"
#include "client/torch/mask_join.h"

namespace ringserve {
namespace {

using at::Tensor;
using Sizes = std::vector<int64_t>;

std::string Text(const Tensor& tensor) {
  return c10::str(tensor.scalar_type(), " ", tensor.sizes());
}

bool RequiresGrad(const Tensor& tensor) {
  return c10::GradMode::is_enabled() && tensor.requires_grad();
}

// What has no dense bytes of its own in this process's memory, or more than those.
absl::Status CheckPlain(const char* name, const Tensor& tensor) {
  const char* what = nullptr;
  if (tensor.is_nested()) {
    what = "nested";
  } else if (tensor.layout() != at::kStrided || tensor.is_quantized()) {
    what = "sparse or quantised";
  } else if (!tensor.is_cpu()) {
    return absl::UnimplementedError(absl::StrCat(name, " is on ", tensor.device().str(),
                                                 ": only tensors on the CPU are served"));
  } else if (at::isTensorSubclassLike(tensor) || tensor._is_zerotensor()) {
    what = "a wrapper of other tensors";
  } else if (tensor._fw_grad(/*level=*/0).defined()) {
    what = "differentiated in forward mode";
  }
  if (what == nullptr) return absl::OkStatus();
  return absl::UnimplementedError(absl::StrCat(name, " is ", what, ": that is not served"));
}

absl::StatusOr<v1::DType> TypeOf(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kFloat:
      return v1::DTYPE_F32;
    case at::kDouble:
      return v1::DTYPE_F64;
    case at::kBFloat16:
      return v1::DTYPE_BF16;
    case at::kHalf:
      return v1::DTYPE_F16;
    default:
      return absl::UnimplementedError(absl::StrCat(
          "query is ", Text(tensor), ": float32, float64, bfloat16 and float16 are served"));
  }
}

absl::Status CheckTensors(const SdpaArguments& arguments) {
  const Tensor& query = arguments.query;
  const std::pair<const char*, const Tensor&> tensors[] = {
      {"query", query}, {"key", arguments.key}, {"value", arguments.value}};
  for (const auto& [name, tensor] : tensors) {
    const absl::Status plain = CheckPlain(name, tensor);
    if (!plain.ok()) return plain;
    if (tensor.dim() < 2 || tensor.scalar_type() != query.scalar_type()) {
      return absl::InvalidArgumentError(
          absl::StrCat(name, " is ", Text(tensor), ", query is ", Text(query),
                       ": must have at least 2 dimensions and one type"));
    }
  }
  if (query.size(-1) != arguments.key.size(-1) ||
      arguments.key.size(-2) != arguments.value.size(-2)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "query is ", Text(query), ", key ", Text(arguments.key), ", value ", Text(arguments.value),
        ": query and key share the last size, key and value "
        "the one before"));
  }
  return absl::OkStatus();
}

absl::Status CheckMask(const SdpaArguments& arguments) {
  if (!arguments.has_mask()) return absl::OkStatus();
  const Tensor& mask = *arguments.attn_mask;
  const absl::Status plain = CheckPlain("attn_mask", mask);
  if (!plain.ok()) return plain;
  if (mask.dim() < 2) {
    return absl::InvalidArgumentError(
        absl::StrCat("attn_mask is ", Text(mask), ": must have at least 2 dimensions"));
  }
  if (arguments.is_causal) {
    return absl::InvalidArgumentError(
        "attn_mask and is_causal are both given: PyTorch takes one of them");
  }
  if (RequiresGrad(mask)) {
    return absl::UnimplementedError(
        "attn_mask requires a gradient: the service computes none for it");
  }
  const at::ScalarType type = mask.scalar_type();
  if (type != at::kBool && type != at::kFloat && type != arguments.query.scalar_type()) {
    return absl::InvalidArgumentError(absl::StrCat("attn_mask is ", Text(mask), ", query is ",
                                                   Text(arguments.query),
                                                   ": must be bool, float32 or of query's type"));
  }
  return absl::OkStatus();
}

// The number of query heads, and of heads of K and V that serve them.
struct Heads {
  int64_t q, kv;
};

int64_t HeadsOf(const Tensor& tensor) { return tensor.dim() < 3 ? 1 : tensor.size(-3); }

absl::StatusOr<Heads> HeadsOf(const SdpaArguments& arguments) {
  const int64_t q = HeadsOf(arguments.query), k = HeadsOf(arguments.key),
                v = HeadsOf(arguments.value);
  if (arguments.enable_gqa) {
    if (k > 0 && v > 0 && q % k == 0 && q % v == 0) return Heads{q, k == v ? k : q};
  } else {
    const int64_t most = std::max({q, k, v});
    // One head of keys and values for all queries travels as one.
    if (k == 1 && v == 1) return Heads{most, 1};
    const auto fits = [&](int64_t heads) { return heads == 1 || heads == most; };
    if (fits(q) && fits(k) && fits(v)) return Heads{most, most};
  }
  return absl::InvalidArgumentError(
      absl::StrCat("query, key and value have ", q, ", ", k, " and ", v, " heads: ",
                   arguments.enable_gqa ? "query's must be a multiple of the others'"
                                        : "that takes enable_gqa"));
}

// [..., H, S, D] as dense [B, heads, S, D]: broadcast over `lead`, its heads repeated in place.
Tensor WithBatch(Tensor tensor, const Sizes& lead, int64_t heads, at::ScalarType type) {
  while (tensor.dim() < 3) tensor = tensor.unsqueeze(0);
  tensor = tensor.to(type).resolve_neg();
  if (tensor.size(-3) != heads) tensor = tensor.repeat_interleave(heads / tensor.size(-3), -3);
  Sizes whole = lead;
  whole.insert(whole.end(), {heads, tensor.size(-2), tensor.size(-1)});
  const int64_t batch = std::accumulate(lead.begin(), lead.end(), int64_t{1}, std::multiplies<>());
  return tensor.expand(whole)
      .reshape({batch, heads, tensor.size(-2), tensor.size(-1)})
      .contiguous();
}

Sizes LeadOf(const Tensor& tensor) {
  const int64_t dims = std::max<int64_t>(tensor.dim() - 3, 0);
  return {tensor.sizes().begin(), tensor.sizes().begin() + dims};
}

absl::Status AddMasks(const SdpaArguments& arguments, const ContextParallelOptions& options,
                      const DenseMask& dense, SdpaCall& call) {
  v1::AttentionSpec& spec = *call.header.mutable_spec();
  spec.mutable_masks()->Add(options.masks.begin(), options.masks.end());
  if (arguments.is_causal) return MakeCausal(*spec.mutable_masks());
  if (!arguments.has_mask()) return absl::OkStatus();
  if (JoinBands(dense, *spec.mutable_masks())) return absl::OkStatus();
  call.bias = dense.Bytes(call.q.scalar_type());
  v1::Bias& bias = *spec.mutable_bias();
  bias.set_boolean(dense.boolean());
  bias.set_per_batch(call.bias.size(0) > 1);
  bias.set_per_head(call.bias.size(1) > 1);
  return absl::OkStatus();
}

void FillSpec(const SdpaArguments& arguments, v1::DType dtype, SdpaCall& call) {
  v1::AttentionSpec& spec = *call.header.mutable_spec();
  spec.set_batch(call.q.size(0));
  spec.set_q_heads(call.q.size(1));
  spec.set_kv_heads(call.k.size(1));
  spec.set_q_len(call.q.size(2));
  spec.set_kv_len(call.k.size(2));
  spec.set_head_dim(call.q.size(3));
  spec.set_value_dim(call.v.size(3));
  spec.set_dtype(dtype);
  if (arguments.scale.has_value()) spec.set_scale(*arguments.scale);
}

}  // namespace

bool SdpaCall::nonempty() const {
  return std::find(out_sizes.begin(), out_sizes.end(), 0) == out_sizes.end();
}

bool SdpaCall::differentiable() const {
  return RequiresGrad(q) || RequiresGrad(k) || RequiresGrad(v);
}

absl::StatusOr<SdpaCall> MakeSdpaCall(const SdpaArguments& arguments,
                                      const ContextParallelOptions& options) {
  for (const absl::Status& status : {CheckTensors(arguments), CheckMask(arguments)})
    if (!status.ok()) return status;
  if (arguments.dropout_p != 0) {
    return absl::UnimplementedError(
        absl::StrCat("dropout_p is ", arguments.dropout_p, ": the service drops nothing"));
  }
  const absl::StatusOr<Heads> heads = HeadsOf(arguments);
  if (!heads.ok()) return heads.status();
  const absl::StatusOr<v1::DType> own_type = TypeOf(arguments.query);
  if (!own_type.ok()) return own_type.status();

  const Tensor &query = arguments.query, &key = arguments.key, &value = arguments.value;
  Sizes lead = at::infer_size(LeadOf(query), LeadOf(key));
  lead = at::infer_size(lead, LeadOf(value));
  SdpaCall call;
  call.out_type = query.scalar_type();
  call.out_sizes = lead;
  if (std::max({query.dim(), key.dim(), value.dim()}) > 2) call.out_sizes.push_back(heads->q);
  call.out_sizes.insert(call.out_sizes.end(), {query.size(-2), value.size(-1)});
  if (!call.nonempty()) return call;
  if (query.size(-1) == 0 || key.size(-2) == 0) {
    return absl::UnimplementedError(
        absl::StrCat("key is ", Text(key),
                     ": without keys, or without numbers in them, nothing is "
                     "served"));
  }

  DenseMask dense;
  if (arguments.has_mask()) {
    Sizes whole = call.out_sizes;
    whole.back() = key.size(-2);
    absl::StatusOr<DenseMask> made = DenseMask::Make(*arguments.attn_mask, whole);
    if (!made.ok()) return made.status();
    dense = *std::move(made);
  }
  const bool wide = !dense.FitsInto(call.out_type);
  const at::ScalarType type = wide ? at::kFloat : call.out_type;
  call.q = WithBatch(query, lead, heads->q, type);
  call.k = WithBatch(key, lead, heads->kv, type);
  call.v = WithBatch(value, lead, heads->kv, type);
  FillSpec(arguments, wide ? v1::DTYPE_F32 : *own_type, call);
  *call.header.mutable_options() = options.attention;
  const absl::Status masks = AddMasks(arguments, options, dense, call);
  if (!masks.ok()) return masks;
  return call;
}

}  // namespace ringserve
