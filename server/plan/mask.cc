#include "server/plan/mask.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace ringserve {
namespace {

// Key position of query 0.
int64_t QueryOffset(const v1::Mask& mask, const v1::AttentionSpec& spec) {
  if (mask.has_bottom_right() && mask.bottom_right()) return spec.kv_len() - spec.q_len();
  return mask.has_q_offset() ? mask.q_offset() : 0;
}

// The first field that is set and not compiled; nullptr: none.
const char* UnservedField(const v1::Mask& mask) {
  if (mask.has_window()) return "window";
  if (mask.sinks() != 0) return "sinks";
  if (mask.prefix() != 0) return "prefix";
  if (mask.has_documents()) return "documents";
  if (mask.has_blocks()) return "blocks";
  if (mask.slices_size() != 0) return "slices";
  return nullptr;
}

std::vector<Band> Compile(const v1::Mask& mask, const v1::AttentionSpec& spec) {
  Band band{.q_begin = 0, .q_end = spec.q_len(), .k_begin = 0, .k_end = spec.kv_len()};
  if (mask.causal()) band.hi = QueryOffset(mask, spec);
  band = Normalized(band);
  if (Empty(band)) return {};
  return {band};
}

}  // namespace

absl::StatusOr<std::vector<std::vector<Band>>> CompileMasks(const v1::AttentionSpec& spec) {
  std::vector<std::vector<Band>> bands;
  for (int i = 0; i < spec.masks_size(); ++i) {
    if (const char* field = UnservedField(spec.masks(i))) {
      return absl::UnimplementedError(
          absl::StrCat("spec.masks[", i, "].", field, " is not served yet"));
    }
    bands.push_back(Compile(spec.masks(i), spec));
  }
  if (bands.empty()) bands.push_back(Compile(v1::Mask(), spec));
  const bool all_equal = std::all_of(bands.begin(), bands.end(),
                                     [&](const std::vector<Band>& row) { return row == bands[0]; });
  if (all_equal) bands.resize(1);
  return bands;
}

std::string DescribeMasks(const v1::AttentionSpec& spec) {
  if (spec.masks_size() > 1) return absl::StrCat(spec.masks_size(), " masks, one per batch row");
  if (spec.masks().empty() || !spec.masks(0).causal()) return "full";
  const v1::Mask& mask = spec.masks(0);
  if (mask.has_bottom_right() && mask.bottom_right()) return "causal, bottom-right";
  if (mask.has_q_offset() && mask.q_offset() != 0) {
    return absl::StrCat("causal, q_offset ", mask.q_offset());
  }
  return "causal";
}

}  // namespace ringserve
