#include "client/torch/dense_mask.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <numeric>
#include <utility>

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include "absl/strings/str_cat.h"
#include "client/torch/bands.h"

namespace ringserve {
namespace {

using at::Tensor;

// Above, a request would hardly be smaller or faster than with a bias.
constexpr int64_t kMostBands = 4096;

// Numbers that only show (0) or hide (-inf), as bool: the same mask.
Tensor Seen(const Tensor& scores) {
  if (scores.scalar_type() == at::kBool) return scores;
  const Tensor shown = scores == 0;
  const Tensor hidden = scores == -std::numeric_limits<double>::infinity();
  return shown.logical_or(hidden).all().item<bool>() ? shown : scores;
}

// [..., H, Tq, Tk] as [B or 1, H or 1, Tq, Tk].
Tensor OneBatch(const Tensor& scores, const std::vector<int64_t>& whole) {
  const std::vector<int64_t> sizes = scores.sizes().vec();
  const auto last = sizes.end() - 3;
  std::vector<int64_t> lead(sizes.begin(), last);
  if (std::any_of(lead.begin(), lead.end(), [](int64_t size) { return size != 1; }))
    lead.assign(whole.begin(), whole.end() - 3);
  const int64_t batch = std::accumulate(lead.begin(), lead.end(), int64_t{1}, std::multiplies<>());
  lead.insert(lead.end(), last, sizes.end());
  return scores.expand(lead).reshape({batch, last[0], last[1], last[2]});
}

// One batch row, one head, where all are alike.
Tensor Shrunk(Tensor scores) {
  for (const int64_t dim : {0, 1}) {
    const Tensor first = scores.narrow(dim, 0, 1);
    if (scores.stride(dim) == 0 || (scores.size(dim) > 1 && (scores == first).all().item<bool>()))
      scores = first;
  }
  return scores;
}

}  // namespace

absl::StatusOr<DenseMask> DenseMask::Make(const Tensor& attn_mask,
                                          const std::vector<int64_t>& whole) {
  const int64_t dims = std::ssize(whole);
  if (attn_mask.dim() > dims) {
    return absl::UnimplementedError(
        absl::StrCat("attn_mask has ", attn_mask.dim(), " dimensions, the scores have ", dims));
  }
  std::vector<int64_t> sizes(dims - attn_mask.dim(), 1);
  sizes.insert(sizes.end(), attn_mask.sizes().begin(), attn_mask.sizes().end());
  for (int64_t i = 0; i < dims; ++i) {
    if (sizes[i] == 1 || sizes[i] == whole[i]) continue;
    return absl::InvalidArgumentError(c10::str("attn_mask has sizes ", attn_mask.sizes(),
                                               ": must broadcast to ", at::IntArrayRef(whole)));
  }
  const c10::NoGradGuard no_grad;
  Tensor scores = Seen(attn_mask.resolve_neg().reshape(sizes));
  while (scores.dim() < 4) scores = scores.unsqueeze(0);
  return DenseMask(Shrunk(OneBatch(scores, whole)).expand({-1, -1, whole[dims - 2], whole.back()}));
}

bool DenseMask::boolean() const { return scores_.defined() && scores_.scalar_type() == at::kBool; }

bool DenseMask::FitsInto(at::ScalarType type) const {
  if (!scores_.defined() || boolean() || scores_.scalar_type() == type || type == at::kDouble)
    return true;
  return scores_.to(type).to(scores_.scalar_type()).eq(scores_).all().item<bool>();
}

std::optional<std::vector<v1::Mask>> DenseMask::Bands() const {
  if (!boolean() || scores_.size(1) > 1) return std::nullopt;
  std::vector<v1::Mask> masks;
  int64_t left = kMostBands;
  for (int64_t row = 0; row < scores_.size(0); ++row) {
    Tensor visible = scores_[row][0];
    if (visible.stride(1) != 1) visible = visible.contiguous();
    std::optional<v1::Mask> mask =
        RecogniseBands(reinterpret_cast<const uint8_t*>(visible.const_data_ptr<bool>()),
                       visible.size(0), visible.size(1), visible.stride(0), left);
    if (!mask.has_value()) return std::nullopt;
    left -= mask->slices_size();
    masks.push_back(*std::move(mask));
  }
  return masks;
}

Tensor DenseMask::Bytes(at::ScalarType type) const {
  return scores_.to(boolean() ? at::kBool : type).contiguous();
}

}  // namespace ringserve
