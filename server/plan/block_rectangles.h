// Block masks: bits become rectangles.
#pragma once

#include <cstdint>
#include <vector>

#include "proto/band.h"
#include "ringserve/v1/attention.pb.h"

namespace ringserve {

struct BlockRectangles {
  std::vector<Band> bands;  // full, disjoint, sorted by (q_begin, k_begin); some where count > most
  int64_t count = 0;        // of all; where it is above most, at least so many
};

// Runs of set bits, as long as they go, and as many block rows high as the same run goes on.
// `blocks` is valid for these lengths (proto/validate.h). Bits past the last column mean nothing.
BlockRectangles RectanglesOf(const v1::BlockMask& blocks, int64_t q_len, int64_t kv_len,
                             int64_t most);

}  // namespace ringserve
