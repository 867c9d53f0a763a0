#include "server/plan/tiles.h"

#include <algorithm>
#include <optional>
#include <tuple>

namespace ringserve {
namespace {

// Rectangles below this are not worth a call of their own beside a masked tile.
constexpr int64_t kWorthwhileKeys = 128;
constexpr int64_t kSmallestMaskedQueries = 64;

int64_t Queries(const Band& band) { return band.q_end - band.q_begin; }
int64_t Keys(const Band& band) { return band.k_end - band.k_begin; }

Band Rectangle(const Band& band, int64_t k_begin, int64_t k_end) {
  return Cut(band, band.q_begin, band.q_end, k_begin, k_end);
}

void Add(const Band& tile, std::vector<Band>& tiles) {
  if (!Empty(tile)) tiles.push_back(tile);
}

// A band with a lower diagonal: what all its queries see is one rectangle, the edges on both sides
// are cut in half by rows until a dense mask for them is small.
void SplitWindow(const Band& band, std::vector<Band>& tiles);

void Split(const Band& band, std::vector<Band>& tiles) {
  if (Empty(band)) return;
  if (IsFull(band)) {
    tiles.push_back(band);
  } else if (band.lo == Band::kUnboundedLo) {
    // The diagonal starts in the first row's last key: what lies left of it is seen by every row.
    const int64_t corner = band.q_begin + band.hi;
    Add(Rectangle(band, band.k_begin, corner), tiles);
    Add(Rectangle(band, corner, band.k_end), tiles);
  } else {
    SplitWindow(band, tiles);
  }
}

// A narrow window gets low tiles: their masks would be mostly hidden otherwise.
int64_t MostMaskedQueries(const Band& band) {
  if (band.hi == Band::kUnboundedHi) return kMaskedTileQueries;
  return std::clamp(band.hi - band.lo + 1, kSmallestMaskedQueries, kMaskedTileQueries);
}

bool IsSmall(const Band& band) {
  return Queries(band) <= MostMaskedQueries(band) && Keys(band) <= kMaskedTileKeys;
}

void SplitWindow(const Band& band, std::vector<Band>& tiles) {
  const bool has_hi = band.hi != Band::kUnboundedHi;
  if (IsSmall(band)) {
    tiles.push_back(band);
    return;
  }
  const int64_t all_see_begin = std::max(band.k_begin, band.q_end - 1 + band.lo);
  const int64_t all_see_end =
      has_hi ? std::min(band.k_end, band.q_begin + band.hi + 1) : band.k_end;
  if (all_see_end - all_see_begin >= kWorthwhileKeys) {
    Split(Rectangle(band, band.k_begin, all_see_begin), tiles);
    Add(Rectangle(band, all_see_begin, all_see_end), tiles);
    Split(Rectangle(band, all_see_end, band.k_end), tiles);
    return;
  }
  const int64_t middle = band.q_begin + Queries(band) / 2;
  Split(Cut(band, band.q_begin, middle, band.k_begin, band.k_end), tiles);
  Split(Cut(band, middle, band.q_end, band.k_begin, band.k_end), tiles);
}

// Where the local order puts all pieces together into one causal call over both shards (a rank's
// own head-tail shard), that call.
std::optional<Band> AsOneCausal(const std::vector<Band>& pieces, int64_t q_rows, int64_t k_rows) {
  uint64_t area = 0;
  for (const Band& piece : pieces) {
    const int64_t highest =
        piece.hi != Band::kUnboundedHi ? piece.hi : piece.k_end - 1 - piece.q_begin;
    if (highest > 0) return std::nullopt;
    area += Area(piece);
  }
  const Band causal = Normalized({.q_end = q_rows, .k_end = k_rows, .hi = 0});
  if (Area(causal) != area) return std::nullopt;
  return causal;
}

// Neighbours in a row of tiles with the same queries.
void FuseKeys(std::vector<Band>& tiles) {
  std::sort(tiles.begin(), tiles.end(), [](const Band& a, const Band& b) {
    return std::tie(a.q_begin, a.q_end, a.k_begin) < std::tie(b.q_begin, b.q_end, b.k_begin);
  });
  std::vector<Band> fused;
  for (const Band& tile : tiles) {
    Band* last = fused.empty() ? nullptr : &fused.back();
    if (last && IsFull(*last) && IsFull(tile) && last->q_begin == tile.q_begin &&
        last->q_end == tile.q_end && last->k_end == tile.k_begin) {
      last->k_end = tile.k_end;
    } else {
      fused.push_back(tile);
    }
  }
  tiles = std::move(fused);
}

// Neighbours in a column of tiles with the same keys; below a causal tile every row sees all its
// keys.
void FuseQueries(std::vector<Band>& tiles) {
  std::sort(tiles.begin(), tiles.end(), [](const Band& a, const Band& b) {
    return std::tie(a.k_begin, a.k_end, a.q_begin) < std::tie(b.k_begin, b.k_end, b.q_begin);
  });
  std::vector<Band> fused;
  for (const Band& tile : tiles) {
    Band* last = fused.empty() ? nullptr : &fused.back();
    if (last && (IsFull(*last) || IsCornerCausal(*last)) && IsFull(tile) &&
        last->k_begin == tile.k_begin && last->k_end == tile.k_end && last->q_end == tile.q_begin) {
      last->q_end = tile.q_end;
    } else {
      fused.push_back(tile);
    }
  }
  tiles = std::move(fused);
}

// The band that both show together, if there is one. They are normalized, and so the diagonals
// through their corners are seen: the outermost of them bound the whole.
std::optional<Band> Joined(const Band& a, const Band& b) {
  const auto least = [](const Band& band) {
    return std::max(band.lo, band.k_begin - (band.q_end - 1));
  };
  const auto most = [](const Band& band) {
    return std::min(band.hi, band.k_end - 1 - band.q_begin);
  };
  const Band both = Normalized({.q_begin = std::min(a.q_begin, b.q_begin),
                                .q_end = std::max(a.q_end, b.q_end),
                                .k_begin = std::min(a.k_begin, b.k_begin),
                                .k_end = std::max(a.k_end, b.k_end),
                                .lo = std::min(least(a), least(b)),
                                .hi = std::max(most(a), most(b))});
  if (Area(both) != Area(a) + Area(b) || Cut(both, a.q_begin, a.q_end, a.k_begin, a.k_end) != a ||
      Cut(both, b.q_begin, b.q_end, b.k_begin, b.k_end) != b) {
    return std::nullopt;
  }
  return both;
}

// Each with the one before, in the order they come in, where they show one band together.
void JoinNeighbours(std::vector<Band>& tiles) {
  std::vector<Band> joined;
  for (const Band& tile : tiles) {
    const std::optional<Band> both = joined.empty() ? std::nullopt : Joined(joined.back(), tile);
    both ? void(joined.back() = *both) : joined.push_back(tile);
  }
  tiles = std::move(joined);
}

void SortByQueries(std::vector<Band>& tiles) {
  std::sort(tiles.begin(), tiles.end(), [](const Band& a, const Band& b) {
    return std::tie(a.q_begin, a.k_begin) < std::tie(b.q_begin, b.k_begin);
  });
}

std::vector<Band> TilesOfAnyBand(std::vector<Band> tiles) {
  SortByQueries(tiles);
  JoinNeighbours(tiles);
  std::sort(tiles.begin(), tiles.end(), [](const Band& a, const Band& b) {
    return std::tie(a.k_begin, a.q_begin) < std::tie(b.k_begin, b.q_begin);
  });
  JoinNeighbours(tiles);
  SortByQueries(tiles);
  return tiles;
}

}  // namespace

Kernel KernelOf(v1::DType dtype) {
  return dtype == v1::DTYPE_F64 ? Kernel::kMasks : Kernel::kAnyBand;
}

int64_t MostTiles(const Band& piece, Kernel kernel) {
  if (Empty(piece)) return 0;
  if (IsFull(piece) || kernel == Kernel::kAnyBand) return 1;
  if (piece.lo == Band::kUnboundedLo) return 2;
  if (IsSmall(piece)) return 1;
  const int64_t queries = Queries(piece);
  // An edge is halved until its triangles have no more than kMaskedTileQueries rows; what all rows
  // of a half see is a tile, too.
  const int64_t edge = queries / (kMaskedTileQueries / 4) + 1;
  if (piece.hi == Band::kUnboundedHi) return edge + 1;
  // A window is halved until a part is small, or has keys that all its rows see: then it has an
  // edge, these keys, and what is left to a diagonal.
  const int64_t width = piece.hi - piece.lo + 1;
  const int64_t wide = kMaskedTileQueries + kWorthwhileKeys;
  if (width >= wide) return edge + 5 * (2 * queries / (width - kWorthwhileKeys) + 1);
  const int64_t halvings = width + MostMaskedQueries(piece) > kMaskedTileKeys ? 4 : 2;
  return halvings * queries / MostMaskedQueries(piece) + 1;
}

bool IsCornerCausal(const Band& tile) {
  return tile.lo == Band::kUnboundedLo && tile.hi == tile.k_begin - tile.q_begin &&
         Queries(tile) >= Keys(tile);
}

std::vector<Band> TilesOf(const std::vector<Band>& pieces, int64_t q_rows, int64_t k_rows,
                          Kernel kernel) {
  if (pieces.empty()) return {};
  if (const std::optional<Band> causal = AsOneCausal(pieces, q_rows, k_rows)) return {*causal};
  if (kernel == Kernel::kAnyBand) return TilesOfAnyBand(pieces);
  std::vector<Band> tiles;
  for (const Band& piece : pieces) Split(piece, tiles);
  FuseKeys(tiles);
  FuseQueries(tiles);
  SortByQueries(tiles);
  return tiles;
}

}  // namespace ringserve
