#include "server/plan/mask.h"

#include <algorithm>
#include <array>
#include <cassert>
#include <iterator>
#include <tuple>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "proto/slice.h"
#include "server/plan/band_tree.h"
#include "server/plan/block_rectangles.h"

namespace ringserve {
namespace {

using Bands = std::vector<Band>;

// A condition is a set of disjoint bands. Its pairs that another such set shows, too, are again
// disjoint bands: those that a band of the one and a band of the other share.
struct Shared {
  Bands bands;            // the first kMostBands
  int64_t count = 0;      // of all, where looked_at is within kMostComparisons
  int64_t looked_at = 0;  // by this and all before
};

Shared Intersect(const Bands& a, const Bands& b, int64_t looked_at) {
  Shared shared{.looked_at = looked_at};
  const BandTree tree(b);
  for (const Band& band : a) {
    shared.looked_at += tree.ForEachNear(band, [&](const Band& near) {
      const Band both = Intersection(band, near);
      if (!Empty(both) && ++shared.count <= kMostBands) shared.bands.push_back(both);
    });
    if (shared.looked_at > kMostComparisons) break;
  }
  return shared;
}

// Where positions are counted from: a document, or everything.
struct Frame {
  int64_t q_begin = 0, q_end = 0;
  int64_t k_begin = 0, k_end = 0;

  int64_t queries() const { return q_end - q_begin; }
  int64_t keys() const { return k_end - k_begin; }
  Band band() const {
    return {.q_begin = q_begin, .q_end = q_end, .k_begin = k_begin, .k_end = k_end};
  }
};

// What k - q of a query and the key at its position p is, in global coordinates.
int64_t Diagonal(const v1::Mask& mask, const Frame& frame) {
  const int64_t offset =
      mask.bottom_right() ? frame.keys() - frame.queries() : mask.q_offset();  // 0: neither given
  return offset + frame.k_begin - frame.q_begin;
}

// "`rule`, or one of the first `exempt` keys": disjoint, as the rule is left to the other keys.
std::array<Band, 2> Unless(const Frame& frame, int64_t exempt, const Band& rule) {
  if (Normalized(rule) == frame.band()) return {frame.band(), Band{}};
  const int64_t others = frame.k_begin + std::min(exempt, frame.keys());
  return {Cut(frame.band(), frame.q_begin, frame.q_end, frame.k_begin, others),
          Cut(rule, frame.q_begin, frame.q_end, others, frame.k_end)};
}

std::array<Band, 2> Causal(const v1::Mask& mask, const Frame& frame) {
  Band rule = frame.band();
  if (mask.causal()) rule.hi = Diagonal(mask, frame);
  return Unless(frame, mask.prefix(), rule);
}

std::array<Band, 2> Windowed(const v1::Mask& mask, const Frame& frame) {
  Band rule = frame.band();
  if (mask.window().has_left()) rule.lo = Diagonal(mask, frame) - mask.window().left();
  if (mask.window().has_right()) rule.hi = Diagonal(mask, frame) + mask.window().right();
  return Unless(frame, mask.sinks(), rule);
}

// visit(frame) for each document that has queries and keys; for everything where there are none.
template <typename Visit>
void ForEachFrame(const v1::Mask& mask, const v1::AttentionSpec& spec, Visit visit) {
  if (!mask.has_documents()) return visit(Frame{.q_end = spec.q_len(), .k_end = spec.kv_len()});
  const v1::Documents& documents = mask.documents();
  const auto& kv_lengths =
      documents.kv_lengths().empty() ? documents.q_lengths() : documents.kv_lengths();
  Frame frame;
  for (int i = 0; i < documents.q_lengths_size(); ++i) {
    frame = {.q_begin = frame.q_end,
             .q_end = frame.q_end + documents.q_lengths(i),
             .k_begin = frame.k_end,
             .k_end = frame.k_end + kv_lengths[i]};
    if (frame.queries() > 0 && frame.keys() > 0) visit(frame);
  }
}

// Causal, window and documents: up to four bands for each document.
Shared InFrames(const v1::Mask& mask, const v1::AttentionSpec& spec) {
  Shared shared;
  ForEachFrame(mask, spec, [&](const Frame& frame) {
    const std::array<Band, 2> windowed = Windowed(mask, frame);
    for (const Band& causal : Causal(mask, frame)) {
      for (const Band& window : windowed) {
        const Band both = Intersection(causal, window);
        if (!Empty(both) && ++shared.count <= kMostBands) shared.bands.push_back(both);
      }
    }
  });
  return shared;
}

void Sort(Bands& bands) {
  std::sort(bands.begin(), bands.end(), [](const Band& a, const Band& b) {
    return std::tie(a.q_begin, a.k_begin, a.q_end, a.k_end, a.lo, a.hi) <
           std::tie(b.q_begin, b.k_begin, b.q_end, b.k_end, b.lo, b.hi);
  });
}

Bands SlicesOf(const v1::Mask& mask) {
  Bands bands;
  for (const v1::Slice& slice : mask.slices()) {
    const Band band = Normalized(ToBand(slice));
    if (!Empty(band)) bands.push_back(band);
  }
  Sort(bands);
  return bands;
}

// Compiles a request's masks one after the other and counts what they take together.
class Compiler {
 public:
  explicit Compiler(const v1::AttentionSpec& spec) : spec_(spec) {}

  absl::StatusOr<Bands> Compile(const v1::Mask& mask, int index) {
    index_ = index;
    Shared visible = InFrames(mask, spec_);
    absl::Status status = CheckCount("causal, window and documents", visible.count);
    if (status.ok() && mask.has_blocks()) {
      const BlockRectangles blocks =
          RectanglesOf(mask.blocks(), spec_.q_len(), spec_.kv_len(), kMostBands);
      status = CheckCount("blocks", blocks.count);
      if (status.ok()) status = Narrow(blocks.bands, "blocks", visible);
    }
    if (status.ok() && !mask.slices().empty()) status = Narrow(SlicesOf(mask), "slices", visible);
    if (!status.ok()) return status;
    Sort(visible.bands);
    return std::move(visible.bands);
  }

 private:
  absl::Status CheckCount(absl::string_view conditions, int64_t count) const {
    if (count <= kMostBands) return absl::OkStatus();
    return absl::FailedPreconditionError(absl::StrCat("spec.masks[", index_, "]: its ", conditions,
                                                      " make ", count, " bands, limit ",
                                                      kMostBands));
  }

  // Leaves of `visible` what `condition` shows, too.
  absl::Status Narrow(const Bands& condition, absl::string_view name, Shared& visible) {
    visible = Intersect(visible.bands, condition, looked_at_);
    looked_at_ = visible.looked_at;
    if (looked_at_ > kMostComparisons) {
      return absl::FailedPreconditionError(absl::StrCat(
          "spec.masks[", index_, "].", name, ": where they meet the mask's other conditions took ",
          looked_at_, " comparisons, limit ", kMostComparisons));
    }
    return CheckCount(absl::StrCat("conditions up to ", name), visible.count);
  }

  const v1::AttentionSpec& spec_;
  int index_ = 0;
  int64_t looked_at_ = 0;
};

std::string Side(bool given, int64_t keys) { return given ? absl::StrCat(keys) : "all"; }

std::string DescribeMask(const v1::Mask& mask) {
  std::vector<std::string> words;
  if (mask.causal()) words.push_back("causal");
  if (mask.causal() || mask.has_window()) {
    if (mask.bottom_right()) words.push_back("bottom-right");
    if (mask.q_offset() != 0) words.push_back(absl::StrCat("q_offset ", mask.q_offset()));
  }
  if (mask.has_window()) {
    const v1::Window& window = mask.window();
    words.push_back(absl::StrCat("window ", Side(window.has_left(), window.left()), " left, ",
                                 Side(window.has_right(), window.right()), " right"));
  }
  if (mask.sinks() > 0) words.push_back(absl::StrCat(mask.sinks(), " sinks"));
  if (mask.prefix() > 0) words.push_back(absl::StrCat("prefix ", mask.prefix()));
  if (mask.has_documents())
    words.push_back(absl::StrCat(mask.documents().q_lengths_size(), " documents"));
  if (mask.has_blocks()) {
    words.push_back(
        absl::StrCat("blocks of ", mask.blocks().q_block(), " x ", mask.blocks().kv_block()));
  }
  if (!mask.slices().empty()) words.push_back(absl::StrCat(mask.slices_size(), " slices"));
  return words.empty() ? "full" : absl::StrJoin(words, ", ");
}

}  // namespace

absl::StatusOr<std::vector<std::vector<Band>>> CompileMasks(const v1::AttentionSpec& spec) {
  Compiler compiler(spec);
  if (spec.masks().empty()) return std::vector<Bands>{*compiler.Compile(v1::Mask(), 0)};
  std::vector<Bands> bands;
  int64_t count = 0;
  int same = 0;  // rows that see what the first one does, and are not in `bands` yet
  for (int i = 0; i < spec.masks_size(); ++i) {
    absl::StatusOr<Bands> row = compiler.Compile(spec.masks(i), i);
    if (!row.ok()) return row.status();
    if (bands.size() == 1 && *row == bands[0]) {
      ++same;
      continue;
    }
    const int64_t first = bands.empty() ? 0 : bands[0].size();
    count += same * first + static_cast<int64_t>(row->size());
    if (count > kMostBands) {
      return absl::FailedPreconditionError(absl::StrCat(
          "spec.masks[", i, "] and those before it make ", count, " bands, limit ", kMostBands));
    }
    bands.reserve(spec.masks_size());
    for (; same > 0; --same) bands.push_back(bands[0]);
    bands.push_back(*std::move(row));
  }
  return bands;
}

std::vector<std::vector<Alignment>> AlignmentsOf(const v1::AttentionSpec& spec) {
  if (spec.masks().empty()) return {{{}}};
  std::vector<std::vector<Alignment>> rows;
  for (const v1::Mask& mask : spec.masks()) {
    std::vector<Alignment> row;
    ForEachFrame(mask, spec, [&](const Frame& frame) {
      row.push_back({frame.q_begin, Diagonal(mask, frame)});
    });
    rows.push_back(std::move(row));
  }
  const bool same =
      std::all_of(rows.begin(), rows.end(), [&](const auto& row) { return row == rows[0]; });
  if (same) rows.resize(1);
  return rows;
}

int64_t DiagonalAt(const std::vector<Alignment>& alignments, int64_t q) {
  const auto after =
      std::upper_bound(alignments.begin(), alignments.end(), q,
                       [](int64_t at, const Alignment& next) { return at < next.q_begin; });
  assert(after != alignments.begin());
  return std::prev(after)->diagonal;
}

std::string DescribeMasks(const v1::AttentionSpec& spec) {
  if (spec.masks_size() > 1) return absl::StrCat(spec.masks_size(), " masks, one per batch row");
  return spec.masks().empty() ? "full" : DescribeMask(spec.masks(0));
}

}  // namespace ringserve
