#include "client/ringctl/mask_image.h"

#include <algorithm>

#include "client/ringctl/plan_picture.h"
#include "client/ringctl/visible_keys.h"

namespace ringserve {
namespace {

constexpr int64_t kSamples = 4;

// The positions that stand for pixel `pixel` of `pixels`. The first of a pixel is always among
// them: so the first keys, which sinks keep visible, show.
std::vector<int64_t> PositionsOf(int64_t length, int pixels, int pixel) {
  const int64_t begin = length * pixel / pixels;
  const int64_t count = std::max<int64_t>(1, length * (pixel + 1) / pixels - begin);
  const int64_t samples = std::min(count, kSamples);
  std::vector<int64_t> positions;
  for (int64_t i = 0; i < samples; ++i) positions.push_back(begin + count * i / samples);
  return positions;
}

class ColorMean {
 public:
  void Add(Color color) { red_ += color.red, green_ += color.green, blue_ += color.blue, ++count_; }
  Color mean() const {
    const auto rounded = [this](int sum) {
      return static_cast<uint8_t>((sum + count_ / 2) / count_);
    };
    return {rounded(red_), rounded(green_), rounded(blue_)};
  }

 private:
  int red_ = 0, green_ = 0, blue_ = 0, count_ = 0;
};

Color ColorOf(int rank) { return rank < 0 ? kNobodyColor : RankColor(rank); }

const v1::Mask& FirstMask(const v1::AttentionSpec& spec) {
  return spec.masks().empty() ? v1::Mask::default_instance() : spec.masks(0);
}

}  // namespace

Holders::Holders(const v1::SequenceLayout& layout) {
  if (layout.rows().empty()) return;
  const v1::RowLayout& row = layout.rows(0);
  for (int rank = 0; rank < row.ranks_size(); ++rank) {
    for (const v1::Segment& segment : row.ranks(rank).segments())
      segments_.push_back({segment.begin(), segment.end(), rank});
  }
  std::sort(segments_.begin(), segments_.end(),
            [](const HeldSegment& a, const HeldSegment& b) { return a.begin < b.begin; });
}

int Holders::Of(int64_t position) const {
  const auto after = std::upper_bound(
      segments_.begin(), segments_.end(), position,
      [](int64_t value, const HeldSegment& segment) { return value < segment.begin; });
  if (after == segments_.begin() || position >= (after - 1)->end) return -1;
  return (after - 1)->rank;
}

Image HoldersImage(const Holders& holders, int64_t length, int width, int height) {
  const bool across = width > height;
  const int pixels = across ? width : height;
  std::vector<Color> colors;
  for (int pixel = 0; pixel < pixels; ++pixel) {
    ColorMean mean;
    for (const int64_t position : PositionsOf(length, pixels, pixel))
      mean.Add(ColorOf(holders.Of(position)));
    colors.push_back(mean.mean());
  }
  Image image{width, height, {}};
  for (int y = 0; y < height; ++y) {
    for (int x = 0; x < width; ++x) image.pixels.push_back(colors[across ? x : y]);
  }
  return image;
}

Image MaskImage(const v1::AttentionSpec& spec, const Holders& holders, bool by_key, int side) {
  const v1::Mask& mask = FirstMask(spec);
  std::vector<std::vector<int64_t>> keys(side);
  std::vector<std::vector<Color>> key_colors(side);
  for (int x = 0; x < side; ++x) {
    keys[x] = PositionsOf(spec.kv_len(), side, x);
    for (const int64_t key : keys[x]) key_colors[x].push_back(ColorOf(holders.Of(key)));
  }
  Image image{side, side, {}};
  for (int y = 0; y < side; ++y) {
    const std::vector<int64_t> queries = PositionsOf(spec.q_len(), side, y);
    std::vector<ColorMean> means(side);
    for (const int64_t query : queries) {
      const VisibleKeys visible(mask, spec.q_len(), spec.kv_len(), query);
      const Color query_color = ColorOf(holders.Of(query));
      for (int x = 0; x < side; ++x) {
        for (size_t i = 0; i < keys[x].size(); ++i) {
          const Color color = by_key ? key_colors[x][i] : query_color;
          means[x].Add(visible.Sees(keys[x][i]) ? color : Color{});
        }
      }
    }
    for (const ColorMean& mean : means) image.pixels.push_back(mean.mean());
  }
  return image;
}

}  // namespace ringserve
