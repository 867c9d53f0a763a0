// Cuts a tile into pieces such as library kernels take: rectangles that are seen as a whole, those
// under a diagonal that starts in the corner, and what is left, for which a mask is made.
#pragma once

#include <cstdint>
#include <functional>
#include <limits>

#include "worker/attention/rank_plan.h"

namespace ringserve {

inline int64_t Queries(const Tile& tile) { return tile.q_end - tile.q_begin; }
inline int64_t Keys(const Tile& tile) { return tile.k_end - tile.k_begin; }

// The pairs of `tile` in these rows; its diagonals count from the new corner.
Tile Cut(const Tile& tile, int64_t q_begin, int64_t q_end, int64_t k_begin, int64_t k_end);

// Shrinks to the rows and keys that are in a visible pair, and drops a diagonal that hides nothing:
// every row and every key that is left is in a visible pair. Nothing visible: no rows.
Tile BoundingBox(Tile tile);

enum class PieceKind {
  kWhole,   // every query sees every key
  kCausal,  // lo absent, hi 0; at least as many queries as keys
  kMasked,  // anything; every query and every key is in a visible pair
};

struct PieceRules {
  static constexpr int64_t kAny = std::numeric_limits<int64_t>::max();

  bool all_masked = false;      // nothing is kWhole or kCausal
  bool causal_squares = false;  // those of kCausal have as many keys as queries
  // The most that a piece has; at least 1.
  int64_t queries = kAny, keys = kAny;
  int64_t masked_queries = kAny, masked_keys = kAny;
  // So many keys or more that all of a piece's queries see are a piece of their own.
  int64_t whole_keys = kAny;
};

// Calls `run` for pieces that together have the visible pairs of `tile`, each once.
void ForEachPiece(const Tile& tile, const PieceRules& rules,
                  const std::function<void(const Tile& piece, PieceKind kind)>& run);

}  // namespace ringserve
