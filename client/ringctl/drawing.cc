#include "client/ringctl/drawing.h"

#include <algorithm>
#include <string_view>

#include <png.h>

#include "absl/status/status.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"
#include "client/ringctl/small_font.h"

namespace ringserve {
namespace {

constexpr Color kInk{32, 32, 32};
constexpr int kTextScale = 2;
static_assert(kTextScale * (SmallFont::kWidth + 1) == Drawing::kCharacterWidth);
static_assert(kTextScale * SmallFont::kHeight == Drawing::kLineHeight);

void Fill(Image& image, int x, int y, int width, int height, Color color) {
  for (int row = y; row < y + height; ++row) {
    std::fill_n(image.pixels.begin() + int64_t{row} * image.width + x, width, color);
  }
}

void Write(Image& image, const Drawing::Label& label) {
  const int width = static_cast<int>(label.text.size()) * Drawing::kCharacterWidth;
  int x = label.x;
  if (label.anchor == Drawing::Anchor::kMiddle) x -= width / 2;
  if (label.anchor == Drawing::Anchor::kEnd) x -= width;
  for (const char character : label.text) {
    for (int column = 0; column < SmallFont::kWidth; ++column) {
      for (int row = 0; row < SmallFont::kHeight; ++row) {
        if (!SmallFont::Inked(character, column, row)) continue;
        Fill(image, x + kTextScale * column, label.y + kTextScale * row, kTextScale, kTextScale,
             kInk);
      }
    }
    x += Drawing::kCharacterWidth;
  }
}

Image Paint(const Drawing& drawing) {
  Image image{drawing.width, drawing.height, {}};
  image.pixels.resize(static_cast<size_t>(image.width) * image.height);
  for (const Drawing::Box& box : drawing.boxes)
    Fill(image, box.x, box.y, box.width, box.height, box.color);
  for (const Drawing::Picture& picture : drawing.pictures) {
    for (int row = 0; row < picture.image.height; ++row) {
      std::copy_n(picture.image.pixels.begin() + int64_t{row} * picture.image.width,
                  picture.image.width,
                  image.pixels.begin() + int64_t{picture.y + row} * image.width + picture.x);
    }
  }
  for (const Drawing::Label& label : drawing.labels) Write(image, label);
  return image;
}

absl::StatusOr<std::string> Compress(const Image& image) {
  static_assert(sizeof(Color) == 3);
  png_image png = {};
  png.version = PNG_IMAGE_VERSION;
  png.width = static_cast<png_uint_32>(image.width);
  png.height = static_cast<png_uint_32>(image.height);
  png.format = PNG_FORMAT_RGB;
  std::string bytes(PNG_IMAGE_PNG_SIZE_MAX(png), '\0');
  png_alloc_size_t size = bytes.size();
  if (png_image_write_to_memory(&png, bytes.data(), &size, 0, image.pixels.data(), 0, nullptr) ==
      0) {
    return absl::InternalError(absl::StrCat("libpng: ", png.message));
  }
  bytes.resize(size);
  return bytes;
}

std::string Hex(Color color) {
  return absl::StrFormat("#%02x%02x%02x", color.red, color.green, color.blue);
}

std::string_view AnchorName(Drawing::Anchor anchor) {
  switch (anchor) {
    case Drawing::Anchor::kStart:
      return "start";
    case Drawing::Anchor::kMiddle:
      return "middle";
    case Drawing::Anchor::kEnd:
      return "end";
  }
  return "start";
}

}  // namespace

absl::StatusOr<std::string> EncodePng(const Drawing& drawing) { return Compress(Paint(drawing)); }

absl::StatusOr<std::string> EncodeSvg(const Drawing& drawing) {
  std::string svg = absl::StrFormat(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" "
      "viewBox=\"0 0 %d %d\">\n<rect width=\"100%%\" height=\"100%%\" fill=\"#ffffff\"/>\n",
      drawing.width, drawing.height, drawing.width, drawing.height);
  for (const Drawing::Box& box : drawing.boxes) {
    absl::StrAppendFormat(&svg,
                          "<rect x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\" fill=\"%s\"/>\n",
                          box.x, box.y, box.width, box.height, Hex(box.color));
  }
  for (const Drawing::Picture& picture : drawing.pictures) {
    const absl::StatusOr<std::string> png = Compress(picture.image);
    if (!png.ok()) return png.status();
    absl::StrAppendFormat(
        &svg,
        "<image x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\" style=\"image-rendering:pixelated\" "
        "href=\"data:image/png;base64,%s\"/>\n",
        picture.x, picture.y, picture.image.width, picture.image.height, absl::Base64Escape(*png));
  }
  absl::StrAppendFormat(&svg, "<g font-family=\"monospace\" font-size=\"16\" fill=\"%s\">\n",
                        Hex(kInk));
  for (const Drawing::Label& label : drawing.labels) {
    absl::StrAppendFormat(
        &svg, "<text x=\"%d\" y=\"%d\" text-anchor=\"%s\">%s</text>\n", label.x, label.y + 13,
        AnchorName(label.anchor),
        absl::StrReplaceAll(label.text, {{"&", "&amp;"}, {"<", "&lt;"}, {">", "&gt;"}}));
  }
  svg += "</g>\n</svg>\n";
  return svg;
}

}  // namespace ringserve
