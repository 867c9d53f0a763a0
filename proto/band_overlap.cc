#include "proto/band_overlap.h"

#include <algorithm>
#include <iterator>
#include <set>
#include <vector>

namespace ringserve {
namespace {

struct Indexed {
  Band band;  // normalized: every query of it sees a key
  size_t index = 0;
};

int64_t FirstKey(const Band& band, int64_t q) {
  return band.lo == Band::kUnboundedLo ? band.k_begin : std::max(band.k_begin, q + band.lo);
}

std::optional<BandOverlap> OverlapOf(const Indexed& a, const Indexed& b) {
  const Band both = Intersection(a.band, b.band);
  if (Empty(both)) return std::nullopt;
  return BandOverlap{std::min(a.index, b.index), std::max(a.index, b.index), both.q_begin,
                     FirstKey(both, both.q_begin)};
}

// The keys that a band shows to a query move by at most one from a query to the next, and never
// back. So bands that have not overlapped yet keep their order, and the first two that do overlap
// are neighbours in it before.
class Sweep {
 public:
  explicit Sweep(size_t bands) : places_(bands) {}

  // Bands begin in the order of their queries, after those that ended have been removed.
  std::optional<BandOverlap> Begin(const Indexed& band) {
    query_ = band.band.q_begin;
    const auto [at, fresh] = active_.insert(&band);
    if (!fresh) return OverlapOf(**at, band);
    places_[band.index] = at;
    if (at != active_.begin()) {
      if (auto overlap = OverlapOf(**std::prev(at), band)) return overlap;
    }
    if (std::next(at) != active_.end()) return OverlapOf(band, **std::next(at));
    return std::nullopt;
  }

  std::optional<BandOverlap> End(const Indexed& band) {
    const auto next = active_.erase(places_[band.index]);
    if (next == active_.begin() || next == active_.end()) return std::nullopt;
    return OverlapOf(**std::prev(next), **next);
  }

 private:
  struct ByFirstKey {
    const int64_t* query;
    bool operator()(const Indexed* a, const Indexed* b) const {
      return FirstKey(a->band, *query) < FirstKey(b->band, *query);
    }
  };
  using Active = std::set<const Indexed*, ByFirstKey>;

  int64_t query_ = 0;
  Active active_{ByFirstKey{&query_}};
  std::vector<Active::iterator> places_;  // by index
};

}  // namespace

std::optional<BandOverlap> FindOverlap(std::span<const Band> bands) {
  std::vector<Indexed> begins;
  for (size_t i = 0; i < bands.size(); ++i) {
    const Band band = Normalized(bands[i]);
    if (!Empty(band)) begins.push_back({band, i});
  }
  std::sort(begins.begin(), begins.end(),
            [](const Indexed& a, const Indexed& b) { return a.band.q_begin < b.band.q_begin; });
  std::vector<const Indexed*> ends;
  for (const Indexed& band : begins) ends.push_back(&band);
  std::sort(ends.begin(), ends.end(),
            [](const Indexed* a, const Indexed* b) { return a->band.q_end < b->band.q_end; });

  Sweep sweep(bands.size());
  auto begin = begins.begin();
  for (const Indexed* end : ends) {
    for (; begin != begins.end() && begin->band.q_begin < end->band.q_end; ++begin) {
      if (auto overlap = sweep.Begin(*begin)) return overlap;
    }
    if (auto overlap = sweep.End(*end)) return overlap;
  }
  return std::nullopt;
}

}  // namespace ringserve
