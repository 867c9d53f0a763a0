#include "server/plan/tiles.h"

#include <algorithm>
#include <tuple>
#include <utility>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/random.h"

namespace ringserve::test {
namespace {

using ::testing::ElementsAre;

struct Pieces {
  std::vector<Band> bands;
  int64_t q_rows = 0, k_rows = 0;
};

// Disjoint bands: one in each cell of a random grid, sometimes none; now and then with a lower
// diagonal.
Pieces RandomPieces(Random& random, int64_t most_rows) {
  Pieces pieces;
  const auto cuts = [&](int64_t& rows) {
    std::vector<int64_t> at = {0};
    for (int64_t i = random.Between(1, 4); i > 0; --i)
      at.push_back(at.back() + random.Between(1, most_rows));
    rows = at.back();
    return at;
  };
  const std::vector<int64_t> q = cuts(pieces.q_rows), k = cuts(pieces.k_rows);
  for (size_t i = 0; i + 1 < q.size(); ++i) {
    for (size_t j = 0; j + 1 < k.size(); ++j) {
      Band band{.q_begin = q[i], .q_end = q[i + 1], .k_begin = k[j], .k_end = k[j + 1]};
      const int64_t least = band.k_begin - band.q_end, most = band.k_end - band.q_begin;
      if (random.Chance(0.5)) band.hi = random.Chance(0.5) ? 0 : random.Between(least, most);
      if (random.Chance(0.2)) band.lo = random.Between(least, most);
      band = Normalized(band);
      if (!Empty(band) && random.Chance(0.9)) pieces.bands.push_back(band);
    }
  }
  return pieces;
}

std::vector<int> Shown(const std::vector<Band>& bands, int64_t q_rows, int64_t k_rows) {
  std::vector<int> counts(q_rows * k_rows);
  for (const Band& band : bands) {
    for (int64_t q = band.q_begin; q < band.q_end; ++q) {
      for (int64_t k = band.k_begin; k < band.k_end; ++k)
        counts[q * k_rows + k] += Sees(band, q, k);
    }
  }
  return counts;
}

void ExpectOfThreeKinds(const Band& tile) {
  EXPECT_EQ(Normalized(tile), tile) << ToString(tile);
  if (IsFull(tile) || IsCornerCausal(tile)) return;
  EXPECT_NE(tile.lo, Band::kUnboundedLo) << ToString(tile);
  EXPECT_LE(tile.q_end - tile.q_begin, kMaskedTileQueries) << ToString(tile);
  EXPECT_LE(tile.k_end - tile.k_begin, kMaskedTileKeys) << ToString(tile);
}

TEST(Tiles, ShowThePairsOfThePiecesEachOnce) {
  Random random(1);
  for (int i = 0; i < 3'000; ++i) {
    const Pieces pieces = RandomPieces(random, 12);
    const std::vector<Band> tiles =
        TilesOf(pieces.bands, pieces.q_rows, pieces.k_rows, Kernel::kMasks);
    ASSERT_EQ(Shown(tiles, pieces.q_rows, pieces.k_rows),
              Shown(pieces.bands, pieces.q_rows, pieces.k_rows))
        << "case " << i;
    for (const Band& tile : tiles) ExpectOfThreeKinds(tile);
  }
}

TEST(Tiles, ShowThePairsOfLargePiecesEachOnce) {
  Random random(2);
  for (int i = 0; i < 12; ++i) {
    const Pieces pieces = RandomPieces(random, 1'500);
    const std::vector<Band> tiles =
        TilesOf(pieces.bands, pieces.q_rows, pieces.k_rows, Kernel::kMasks);
    ASSERT_EQ(Shown(tiles, pieces.q_rows, pieces.k_rows),
              Shown(pieces.bands, pieces.q_rows, pieces.k_rows))
        << "case " << i;
    for (const Band& tile : tiles) ExpectOfThreeKinds(tile);
  }
}

TEST(Tiles, ComeInOrder) {
  Random random(3);
  for (int i = 0; i < 500; ++i) {
    const Pieces pieces = RandomPieces(random, 30);
    const std::vector<Band> tiles =
        TilesOf(pieces.bands, pieces.q_rows, pieces.k_rows, Kernel::kMasks);
    EXPECT_TRUE(std::is_sorted(tiles.begin(), tiles.end(), [](const Band& a, const Band& b) {
      return std::tie(a.q_begin, a.k_begin) < std::tie(b.q_begin, b.k_begin);
    }));
  }
}

TEST(Tiles, OfAHeadTailShardAgainstItselfAreOneCausalCall) {
  // Positions [0, 4) and [12, 16) as local rows: head on head and tail on tail are causal, tail on
  // head is full.
  const std::vector<Band> pieces = {
      {.q_begin = 0, .q_end = 4, .k_begin = 0, .k_end = 4, .hi = 0},
      {.q_begin = 4, .q_end = 8, .k_begin = 0, .k_end = 4},
      {.q_begin = 4, .q_end = 8, .k_begin = 4, .k_end = 8, .hi = 0},
  };
  for (const Kernel kernel : {Kernel::kAnyBand, Kernel::kMasks}) {
    EXPECT_THAT(TilesOf(pieces, 8, 8, kernel),
                ElementsAre(Band{.q_begin = 0, .q_end = 8, .k_begin = 0, .k_end = 8, .hi = 0}));
  }
}

TEST(Tiles, OfNeighbouringRectanglesAreOneRectangle) {
  const std::vector<Band> pieces = {
      {.q_begin = 0, .q_end = 4, .k_begin = 0, .k_end = 3},
      {.q_begin = 0, .q_end = 4, .k_begin = 3, .k_end = 9},
      {.q_begin = 4, .q_end = 5, .k_begin = 0, .k_end = 3},
      {.q_begin = 4, .q_end = 5, .k_begin = 3, .k_end = 9},
  };
  for (const Kernel kernel : {Kernel::kAnyBand, Kernel::kMasks}) {
    EXPECT_THAT(TilesOf(pieces, 5, 9, kernel),
                ElementsAre(Band{.q_begin = 0, .q_end = 5, .k_begin = 0, .k_end = 9}));
  }
}

TEST(Tiles, OfACausalBandAreARectangleAndOneOnTheCorner) {
  // Row 0 sees keys 0 to 5: so do all. Beyond them the diagonal starts in a corner.
  const std::vector<Band> pieces = {
      {.q_begin = 0, .q_end = 10, .k_begin = 0, .k_end = 15, .hi = 5}};
  EXPECT_THAT(TilesOf(pieces, 10, 20, Kernel::kMasks),
              ElementsAre(Band{.q_begin = 0, .q_end = 10, .k_begin = 0, .k_end = 5},
                          Band{.q_begin = 0, .q_end = 10, .k_begin = 5, .k_end = 15, .hi = 5}));
}

TEST(Tiles, OfAKernelThatTakesAnyBandShowThePairsOfThePiecesInNoMoreTiles) {
  Random random(5);
  for (int i = 0; i < 3'000; ++i) {
    const Pieces pieces = RandomPieces(random, 12);
    const std::vector<Band> tiles =
        TilesOf(pieces.bands, pieces.q_rows, pieces.k_rows, Kernel::kAnyBand);
    ASSERT_EQ(Shown(tiles, pieces.q_rows, pieces.k_rows),
              Shown(pieces.bands, pieces.q_rows, pieces.k_rows))
        << "case " << i;
    EXPECT_LE(tiles.size(), std::max<size_t>(1, pieces.bands.size()));
    for (const Band& tile : tiles) EXPECT_EQ(Normalized(tile), tile);
  }
}

TEST(Tiles, OfABandThatWasCutAreThatBandAgain) {
  Random random(6);
  for (int i = 0; i < 3'000; ++i) {
    const int64_t q_rows = random.Between(1, 60), k_rows = random.Between(1, 60);
    Band band{.q_end = q_rows, .k_end = k_rows};
    if (random.Chance(0.6)) band.lo = random.Between(-q_rows, k_rows);
    if (random.Chance(0.6))
      band.hi = std::max<int64_t>(band.lo, -q_rows) + random.Between(0, q_rows + k_rows);
    band = Normalized(band);
    if (Empty(band)) continue;
    std::vector<Band> pieces;
    const int64_t q_cut = random.Between(0, q_rows), k_cut = random.Between(0, k_rows);
    for (const auto& [q_begin, q_end] : {std::pair{int64_t{0}, q_cut}, {q_cut, q_rows}}) {
      for (const auto& [k_begin, k_end] : {std::pair{int64_t{0}, k_cut}, {k_cut, k_rows}}) {
        const Band piece = Cut(band, q_begin, q_end, k_begin, k_end);
        if (!Empty(piece)) pieces.push_back(piece);
      }
    }
    ASSERT_THAT(TilesOf(pieces, q_rows, k_rows, Kernel::kAnyBand), ElementsAre(band))
        << ToString(band) << " cut at " << q_cut << ", " << k_cut;
  }
}

TEST(Tiles, OfAWideWindowAreMostlyFull) {
  // 4096 keys left of a diagonal over 2048 rows: nearly everything is seen by all of some rows.
  const std::vector<Band> pieces = {
      Normalized({.q_begin = 0, .q_end = 2048, .k_begin = 0, .k_end = 8192, .lo = 0, .hi = 4095})};
  uint64_t full = 0;
  for (const Band& tile : TilesOf(pieces, 2048, 8192, Kernel::kMasks)) {
    if (IsFull(tile)) full += Area(tile);
  }
  EXPECT_GT(full, Area(pieces[0]) / 2);
}

TEST(Tiles, OfAPieceAreNoMoreThanForetold) {
  Random random(4);
  for (int i = 0; i < 20'000; ++i) {
    const int64_t q_rows = random.BetweenByMagnitude(1, 20'000);
    const int64_t k_rows = random.BetweenByMagnitude(1, 20'000);
    Band piece{.q_end = q_rows, .k_end = k_rows};
    if (random.Chance(0.9)) piece.lo = random.Between(-q_rows, k_rows);
    if (random.Chance(0.8)) {
      piece.hi = piece.lo == Band::kUnboundedLo
                     ? random.Between(-q_rows, k_rows)
                     : piece.lo + random.BetweenByMagnitude(1, 20'000) - 1;
    }
    piece = Normalized(piece);
    if (Empty(piece)) continue;
    ASSERT_LE(static_cast<int64_t>(TilesOf({piece}, q_rows, k_rows, Kernel::kMasks).size()),
              MostTiles(piece, Kernel::kMasks))
        << ToString(piece);
  }
}

}  // namespace
}  // namespace ringserve::test
