#include "server/plan/block_rectangles.h"

#include <algorithm>
#include <string>

namespace ringserve {
namespace {

// Columns [begin, end) of a run, and the block row that it began in.
struct Run {
  int64_t begin = 0, end = 0;
  int64_t first_row = 0;
};

// The first `most` of a block row's runs; returns how many there are.
int64_t FindRuns(const uint8_t* bits, int64_t columns, int64_t row, int64_t most,
                 std::vector<Run>& runs) {
  int64_t count = 0;
  bool in_run = false;
  for (int64_t column = 0; column < columns;) {
    const uint8_t byte = bits[column / 8];
    const int64_t next = std::min(columns, column + 8);
    if (byte == (in_run ? 0xFF : 0)) {  // nothing changes here
      column = next;
      continue;
    }
    for (; column < next; ++column) {
      const bool set = byte >> (column % 8) & 1;
      if (set && !in_run && ++count <= most) runs.push_back({column, columns, row});
      if (!set && in_run && count <= most) runs.back().end = column;
      in_run = set;
    }
  }
  return count;
}

}  // namespace

BlockRectangles RectanglesOf(const v1::BlockMask& blocks, int64_t q_len, int64_t kv_len,
                             int64_t most) {
  const int64_t columns = (kv_len + blocks.kv_block() - 1) / blocks.kv_block();
  const int64_t rows = (q_len + blocks.q_block() - 1) / blocks.q_block();
  const auto* bits = reinterpret_cast<const uint8_t*>(blocks.bits().data());

  BlockRectangles rectangles;
  const auto close = [&](const Run& run, int64_t end_row) {
    if (++rectangles.count > most) return;
    rectangles.bands.push_back({.q_begin = run.first_row * blocks.q_block(),
                                .q_end = std::min(q_len, end_row * blocks.q_block()),
                                .k_begin = run.begin * blocks.kv_block(),
                                .k_end = std::min(kv_len, run.end * blocks.kv_block())});
  };
  std::vector<Run> open;  // of the row above, ascending
  for (int64_t row = 0; row <= rows; ++row) {
    std::vector<Run> runs;
    if (row < rows) {
      // Each is of another rectangle: there is no need to keep them all to know that it is too
      // much.
      const int64_t count = FindRuns(bits + row * ((columns + 7) / 8), columns, row, most, runs);
      if (count > most) return {.count = std::max(count, rectangles.count)};
    }
    auto above = open.begin();
    for (Run& run : runs) {
      for (; above != open.end() && above->begin < run.begin; ++above) close(*above, row);
      if (above == open.end() || above->begin != run.begin) continue;
      if (above->end == run.end) {
        run.first_row = above->first_row;
      } else {
        close(*above, row);
      }
      ++above;
    }
    for (; above != open.end(); ++above) close(*above, row);
    open = std::move(runs);
  }
  std::sort(rectangles.bands.begin(), rectangles.bands.end(), [](const Band& a, const Band& b) {
    return std::pair(a.q_begin, a.k_begin) < std::pair(b.q_begin, b.k_begin);
  });
  return rectangles;
}

}  // namespace ringserve
