// A drawing of boxes, images and lines of text, made once and written as SVG or as PNG: the same
// shapes at the same places. Knows nothing of what is drawn.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace ringserve {

struct Color {
  uint8_t red = 255, green = 255, blue = 255;

  friend bool operator==(const Color&, const Color&) = default;
};

struct Image {
  int width = 0, height = 0;
  std::vector<Color> pixels;  // row by row, width * height of them
};

// All places in pixels from the upper left corner. What is added later lies above; images lie above
// boxes, text above both. Everything lies within width x height.
struct Drawing {
  struct Box {
    int x = 0, y = 0, width = 0, height = 0;
    Color color;
  };
  struct Picture {
    int x = 0, y = 0;
    Image image;
  };
  enum class Anchor { kStart, kMiddle, kEnd };
  // One line of printable ASCII; `x` is where it starts, its middle or its end, `y` its upper edge.
  // At most kCharacterWidth pixels a character and kLineHeight high.
  struct Label {
    int x = 0, y = 0;
    std::string text;
    Anchor anchor = Anchor::kStart;
  };
  static constexpr int kCharacterWidth = 12, kLineHeight = 16;

  int width = 0, height = 0;
  std::vector<Box> boxes;
  std::vector<Picture> pictures;
  std::vector<Label> labels;
};

// The bytes of such a file, background white. INTERNAL: libpng fails.
absl::StatusOr<std::string> EncodeSvg(const Drawing& drawing);
absl::StatusOr<std::string> EncodePng(const Drawing& drawing);

}  // namespace ringserve
