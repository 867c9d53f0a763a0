#include "worker/attention/tile_pieces.h"

#include <algorithm>

namespace ringserve {
namespace {

struct Cutter {
  const PieceRules& rules;
  const std::function<void(const Tile&, PieceKind)>& run;

  void Add(const Tile& tile) const {
    const Tile box = BoundingBox(tile);
    if (Queries(box) == 0) return;
    if (rules.all_masked) return AddMasked(box);
    if (!box.lo && !box.hi) return AddWhole(box);
    if (!box.lo && *box.hi > 0) return SplitKeys(box, *box.hi);
    // The box ends where its diagonal does: there are at least as many queries as keys.
    if (!box.lo) return AddCausal(box);
    AddMasked(box);
  }

  void AddWhole(const Tile& box) const {
    if (Queries(box) > rules.queries) return SplitQueries(box, Queries(box) / 2);
    if (Keys(box) > rules.keys) return SplitKeys(box, Keys(box) / 2);
    run(box, PieceKind::kWhole);
  }

  void AddCausal(const Tile& box) const {
    if (rules.causal_squares && Queries(box) > Keys(box)) return SplitQueries(box, Keys(box));
    if (Queries(box) > rules.queries || Keys(box) > rules.keys) {
      return SplitQueries(box, Queries(box) / 2);
    }
    run(box, PieceKind::kCausal);
  }

  void AddMasked(const Tile& box) const {
    if (Queries(box) > std::min(rules.queries, rules.masked_queries)) {
      return SplitQueries(box, Queries(box) / 2);
    }
    // The last query sees none before the first of these, the first one none after the last.
    const int64_t first = box.lo ? std::max<int64_t>(0, Queries(box) - 1 + *box.lo) : 0;
    const int64_t last = box.hi ? std::min(Keys(box), *box.hi + 1) : Keys(box);
    if (!rules.all_masked && last - first >= rules.whole_keys) {
      return SplitKeys(box, first > 0 ? first : last);
    }
    if (Keys(box) > std::min(rules.keys, rules.masked_keys)) return SplitKeys(box, Keys(box) / 2);
    run(box, PieceKind::kMasked);
  }

  // `at` counts from the corner.
  void SplitQueries(const Tile& tile, int64_t at) const {
    Add(Cut(tile, tile.q_begin, tile.q_begin + at, tile.k_begin, tile.k_end));
    Add(Cut(tile, tile.q_begin + at, tile.q_end, tile.k_begin, tile.k_end));
  }
  void SplitKeys(const Tile& tile, int64_t at) const {
    Add(Cut(tile, tile.q_begin, tile.q_end, tile.k_begin, tile.k_begin + at));
    Add(Cut(tile, tile.q_begin, tile.q_end, tile.k_begin + at, tile.k_end));
  }
};

}  // namespace

Tile Cut(const Tile& tile, int64_t q_begin, int64_t q_end, int64_t k_begin, int64_t k_end) {
  Tile cut = tile;
  cut.q_begin = std::max(tile.q_begin, q_begin);
  cut.q_end = std::min(tile.q_end, q_end);
  cut.k_begin = std::max(tile.k_begin, k_begin);
  cut.k_end = std::min(tile.k_end, k_end);
  const int64_t shift = (cut.q_begin - tile.q_begin) - (cut.k_begin - tile.k_begin);
  if (cut.lo) *cut.lo += shift;
  if (cut.hi) *cut.hi += shift;
  cut.distance += shift;
  cut.k_position += cut.k_begin - tile.k_begin;
  return cut;
}

Tile BoundingBox(Tile tile) {
  const int64_t queries = Queries(tile), keys = Keys(tile);
  const int64_t lo = std::clamp(tile.lo.value_or(-queries), -queries, keys);
  const int64_t hi = std::clamp(tile.hi.value_or(keys), -queries, keys);
  if (tile.lo) tile.lo = lo;
  if (tile.hi) tile.hi = hi;
  const int64_t q_begin = std::max<int64_t>(0, -hi), q_end = std::min(queries, keys - lo);
  const int64_t k_begin = std::max<int64_t>(0, q_begin + lo), k_end = std::min(keys, q_end + hi);
  Tile box = Cut(tile, tile.q_begin + q_begin, tile.q_begin + q_end, tile.k_begin + k_begin,
                 tile.k_begin + k_end);
  if (lo > hi || Queries(box) <= 0 || Keys(box) <= 0) return {};
  if (box.lo && *box.lo <= 1 - Queries(box)) box.lo.reset();
  if (box.hi && *box.hi >= Keys(box) - 1) box.hi.reset();
  return box;
}

void ForEachPiece(const Tile& tile, const PieceRules& rules,
                  const std::function<void(const Tile& piece, PieceKind kind)>& run) {
  Cutter{rules, run}.Add(tile);
}

}  // namespace ringserve
