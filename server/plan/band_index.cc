#include "server/plan/band_index.h"

#include <algorithm>

namespace ringserve {

BandIndex::BandIndex(const std::vector<Band>& bands) : bands_(bands) {
  reach_.reserve(bands.size());
  for (const Band& band : bands) {
    reach_.push_back(reach_.empty() ? band.q_end : std::max(reach_.back(), band.q_end));
  }
}

std::span<const Band> BandIndex::Near(int64_t q_begin, int64_t q_end) const {
  const size_t first = std::upper_bound(reach_.begin(), reach_.end(), q_begin) - reach_.begin();
  const auto last =
      std::partition_point(bands_.begin() + first, bands_.end(),
                           [q_end](const Band& band) { return band.q_begin < q_end; });
  return bands_.subspan(first, last - bands_.begin() - first);
}

}  // namespace ringserve
