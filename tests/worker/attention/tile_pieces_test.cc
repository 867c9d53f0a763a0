#include "worker/attention/tile_pieces.h"

#include <vector>

#include <gtest/gtest.h>

#include "tests/support/random.h"

namespace ringserve::test {
namespace {

constexpr int64_t kFar = int64_t{1} << 50;

struct Piece {
  Tile tile;
  PieceKind kind;
};

std::vector<Piece> Pieces(const Tile& tile, const PieceRules& rules) {
  std::vector<Piece> pieces;
  ForEachPiece(tile, rules, [&](const Tile& piece, PieceKind kind) {
    pieces.push_back({piece, kind});
  });
  return pieces;
}

bool Sees(const Tile& tile, int64_t q, int64_t k) {
  const int64_t diagonal = (k - tile.k_begin) - (q - tile.q_begin);
  return q >= tile.q_begin && q < tile.q_end && k >= tile.k_begin && k < tile.k_end &&
         diagonal >= tile.lo.value_or(-kFar) && diagonal <= tile.hi.value_or(kFar);
}

bool SeesSomething(const Tile& tile, int64_t q) {
  for (int64_t k = tile.k_begin; k < tile.k_end; ++k) {
    if (Sees(tile, q, k)) return true;
  }
  return false;
}

void ExpectWithinRules(const Tile& tile, const Piece& piece, const PieceRules& rules) {
  const Tile& p = piece.tile;
  const bool masked = piece.kind == PieceKind::kMasked;
  EXPECT_LE(Queries(p), masked ? std::min(rules.queries, rules.masked_queries) : rules.queries);
  EXPECT_LE(Keys(p), masked ? std::min(rules.keys, rules.masked_keys) : rules.keys);
  EXPECT_TRUE(masked || !rules.all_masked);
  EXPECT_TRUE(piece.kind != PieceKind::kWhole || (!p.lo && !p.hi));
  if (piece.kind == PieceKind::kCausal) {
    EXPECT_TRUE(!p.lo && p.hi == 0);
    EXPECT_GE(Queries(p), Keys(p));
    EXPECT_TRUE(Queries(p) == Keys(p) || !rules.causal_squares);
  }
  for (int64_t q = p.q_begin; q < p.q_end; ++q) EXPECT_TRUE(SeesSomething(p, q)) << q;
  // Positions follow each other in the request as they do in the tile.
  EXPECT_EQ(p.k_position - p.k_begin, tile.k_position - tile.k_begin);
  EXPECT_EQ(p.distance - (p.q_begin - p.k_begin), tile.distance - (tile.q_begin - tile.k_begin));
}

TEST(TilePieces, HaveEachVisiblePairOnceAndKeepTheRules) {
  Random random(1);
  for (int i = 0; i < 3000; ++i) {
    SCOPED_TRACE(i);
    Tile tile;
    tile.q_begin = random.Between(0, 5);
    tile.q_end = tile.q_begin + random.Between(0, 40);
    tile.k_begin = random.Between(0, 5);
    tile.k_end = tile.k_begin + random.Between(0, 40);
    tile.k_position = random.Between(0, 100);
    tile.distance = random.Between(-50, 50);
    if (random.Chance(0.7)) tile.hi = random.Between(-45, 45);
    if (random.Chance(0.5)) tile.lo = random.Between(-45, 45);
    PieceRules rules = {.all_masked = random.Chance(0.2), .causal_squares = random.Chance(0.5)};
    if (random.Chance(0.5)) rules.queries = random.Between(1, 20);
    if (random.Chance(0.5)) rules.keys = random.Between(1, 20);
    if (random.Chance(0.5)) rules.masked_queries = random.Between(1, 20);
    if (random.Chance(0.5)) rules.masked_keys = random.Between(1, 20);
    if (random.Chance(0.5)) rules.whole_keys = random.Between(1, 10);
    const std::vector<Piece> pieces = Pieces(tile, rules);
    for (const Piece& piece : pieces) ExpectWithinRules(tile, piece, rules);
    for (int64_t q = 0; q < 46; ++q) {
      for (int64_t k = 0; k < 46; ++k) {
        int times = 0;
        for (const Piece& piece : pieces) times += Sees(piece.tile, q, k);
        ASSERT_EQ(times, Sees(tile, q, k)) << q << " " << k;
      }
    }
    if (HasFailure()) return;
  }
}

TEST(TilePieces, OfACausalSquareAreOne) {
  const std::vector<Piece> pieces =
      Pieces({.q_end = 1'000'000, .k_end = 1'000'000, .hi = 0}, {.causal_squares = true});
  ASSERT_EQ(pieces.size(), 1U);
  EXPECT_EQ(pieces[0].kind, PieceKind::kCausal);
}

// Most of a window's pairs need no mask.
TEST(TilePieces, OfAWindowAreMostlyWhole) {
  int64_t masked = 0, all = 0;
  for (const Piece& piece :
       Pieces({.q_end = 65'536, .k_end = 65'536, .lo = -4095, .hi = 0}, {.causal_squares = true,
                                                                        .masked_queries = 512,
                                                                        .masked_keys = 2048,
                                                                        .whole_keys = 128})) {
    all += Queries(piece.tile) * Keys(piece.tile);
    if (piece.kind == PieceKind::kMasked) masked += Queries(piece.tile) * Keys(piece.tile);
  }
  EXPECT_LT(masked, all / 8);
  EXPECT_LT(all, 65'536 * 4096 * 5 / 4);
}

}  // namespace
}  // namespace ringserve::test
