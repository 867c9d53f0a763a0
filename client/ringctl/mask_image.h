// Pixels of a mask and of a layout: many positions shrink to one pixel, a few spread over many.
#pragma once

#include <cstdint>
#include <vector>

#include "client/ringctl/drawing.h"
#include "ringserve/v1/attention.pb.h"

namespace ringserve {

// Who holds which positions of the first batch row.
class Holders {
 public:
  explicit Holders(const v1::SequenceLayout& layout);

  // Nothing is known: there is no layout.
  bool unknown() const { return segments_.empty(); }

  // The rank, or -1: nobody.
  int Of(int64_t position) const;

 private:
  struct HeldSegment {
    int64_t begin = 0, end = 0;
    int rank = 0;
  };
  std::vector<HeldSegment> segments_;  // ascending
};

// A strip along its longer side, in the colours of who holds the `length` positions.
Image HoldersImage(const Holders& holders, int64_t length, int width, int height);

// The mask of the first batch row, `side` by `side`: queries down, keys across. Visible pairs have
// the colour of the rank that holds the query (by_key: the key), hidden ones are white, and a pixel
// is the mean of its pairs, of at most four queries by four keys.
Image MaskImage(const v1::AttentionSpec& spec, const Holders& holders, bool by_key, int side);

}  // namespace ringserve
