// Letters of 5 by 8 dots for printable ASCII: enough to label a picture where no font is installed.
#pragma once

namespace ringserve {

struct SmallFont {
  static constexpr int kWidth = 5, kHeight = 8;

  // Whether the dot at (column, row), from the upper left, belongs to the letter. Characters beyond
  // printable ASCII look like '?'.
  static bool Inked(char character, int column, int row);
};

}  // namespace ringserve
