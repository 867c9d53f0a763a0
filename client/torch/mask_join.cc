#include "client/torch/mask_join.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace ringserve {
namespace {

bool CountsFromTheSequencesStart(const v1::Mask& mask) {
  const v1::Documents& documents = mask.documents();
  const bool same_lengths =
      documents.kv_lengths().empty() ||
      std::equal(documents.q_lengths().begin(), documents.q_lengths().end(),
                 documents.kv_lengths().begin(), documents.kv_lengths().end());
  return mask.q_offset() == 0 && !mask.bottom_right() && same_lengths;
}

}  // namespace

absl::Status MakeCausal(Masks& masks) {
  if (masks.empty()) masks.Add();
  for (v1::Mask& mask : masks) {
    if (!CountsFromTheSequencesStart(mask) || mask.prefix() != 0) {
      return absl::InvalidArgumentError(absl::StrCat(
          "is_causal aligns the first query with the first key; the scope's mask ",
          mask.ShortDebugString(), " aligns otherwise, or has a prefix: they cannot be joined"));
    }
    mask.set_causal(true);
  }
  return absl::OkStatus();
}

bool JoinBands(const DenseMask& dense, Masks& masks) {
  if (std::any_of(masks.begin(), masks.end(),
                  [](const auto& mask) { return !mask.slices().empty(); }))
    return false;
  std::optional<std::vector<v1::Mask>> bands = dense.Bands();
  if (!bands.has_value()) return false;
  // One mask holds for all batch rows.
  const int count = std::max(masks.size(), static_cast<int>(bands->size()));
  if ((masks.size() > 1 && masks.size() != count) ||
      (bands->size() > 1 && static_cast<int>(bands->size()) != count)) {
    return false;
  }
  Masks joined;
  for (int i = 0; i < count; ++i) {
    v1::Mask& mask = *joined.Add();
    if (!masks.empty()) mask = masks[masks.size() == 1 ? 0 : i];
    mask.MergeFrom((*bands)[bands->size() == 1 ? 0 : i]);  // slices alone
  }
  masks.Swap(&joined);
  return true;
}

}  // namespace ringserve
