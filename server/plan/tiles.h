// Tiles: the pieces that bands show of two shards become as few and as large rectangles as hold.
// Knows bands and local rows only; refuses nothing.
#pragma once

#include <cstdint>
#include <vector>

#include "proto/band.h"
#include "ringserve/v1/tensor.pb.h"

namespace ringserve {

// What the workers' kernel takes in one call: any band, or full and corner-causal bands, others
// only with a dense mask.
enum class Kernel { kAnyBand, kMasks };

// LibTorch's kernel serves F64, the workers' own the other types.
Kernel KernelOf(v1::DType dtype);

// The most queries and keys of a tile that needs a dense mask.
inline constexpr int64_t kMaskedTileQueries = 512;
inline constexpr int64_t kMaskedTileKeys = 1152;

// `pieces` are disjoint, normalized bands in local rows of a query shard of `q_rows` and a key
// shard of `k_rows`. The result shows the same pairs, each once, as normalized bands, of one of
// three kinds where the kernel is kMasks:
//   full     no diagonal: the kernel's plain call
//   causal   hi on the corner (hi == k_begin - q_begin), no lo, at least as many queries as keys:
//   the
//            kernel's causal flag; rows past the diagonal see every key of the tile
//   masked   any diagonals, at most kMaskedTileQueries x kMaskedTileKeys: a dense mask. Only bands
//   with a
//            `lo` come to this.
// With kAnyBand no piece is cut, and neighbours that show one band together are one tile.
// Sorted by (q_begin, k_begin).
std::vector<Band> TilesOf(const std::vector<Band>& pieces, int64_t q_rows, int64_t k_rows,
                          Kernel kernel);

// At least as many tiles as `piece`, normalized, becomes; in closed form.
int64_t MostTiles(const Band& piece, Kernel kernel);

// The second kind above. `tile` is normalized.
bool IsCornerCausal(const Band& tile);

}  // namespace ringserve
