#include <algorithm>
#include <map>
#include <optional>
#include <set>

#include "proto/tensor_shape.h"
#include "server/plan/band_tree.h"
#include "server/plan/plan.h"
#include "server/plan/position_index.h"
#include "server/plan/tiles.h"

namespace ringserve {
namespace {

using TilesByOwner = std::map<int, std::vector<v1::Tile>>;

v1::Tile ToTile(const Band& band, int owner, int batch_row) {
  const Band corner = Shifted(band, -band.q_begin, -band.k_begin);
  v1::Tile tile;
  tile.set_owner(owner);
  tile.set_q_begin(band.q_begin);
  tile.set_q_end(band.q_end);
  tile.set_k_begin(band.k_begin);
  tile.set_k_end(band.k_end);
  if (corner.lo != Band::kUnboundedLo) tile.set_lo(corner.lo);
  if (corner.hi != Band::kUnboundedHi) tile.set_hi(corner.hi);
  tile.set_batch_row(batch_row);
  return tile;
}

// Keys that all queries of a strip see are one run in their owner's shard, however many segments.
void AddPiece(const Band& piece, std::vector<Band>& pieces) {
  if (!pieces.empty()) {
    Band& last = pieces.back();
    if (IsFull(last) && IsFull(piece) && last.q_begin == piece.q_begin &&
        last.q_end == piece.q_end && last.k_end == piece.k_begin) {
      last.k_end = piece.k_end;
      return;
    }
  }
  pieces.push_back(piece);
}

// visit(queries, keys, piece) for what the bands of one batch row show of each segment of keys to
// each of one rank's segments of queries; the piece is in local rows.
template <typename Visit>
void ForEachPiece(const std::vector<Placed>& q, const PositionIndex& kv, const BandTree& bands,
                  Visit visit) {
  for (const Placed& queries : q) {
    const int64_t begin = queries.segment.begin, end = queries.segment.end;
    bands.ForEachNearQueries(begin, end, [&](const Band& band) {
      const Band strip = Cut(band, begin, end, band.k_begin, band.k_end);
      if (Empty(strip)) return;
      for (const Placed& keys : kv.Overlapping(strip.k_begin, strip.k_end)) {
        const Band piece =
            Cut(strip, strip.q_begin, strip.q_end, keys.segment.begin, keys.segment.end);
        if (Empty(piece)) continue;
        visit(queries, keys,
              Shifted(piece, queries.local - begin, keys.local - keys.segment.begin));
      }
    });
  }
}

// Where scores depend on positions, a tile's rows and keys must follow each other in the request,
// and lie in one document: no piece is put together with another.
void AddPlacedTiles(const Plan& plan, int rank, int64_t batch_row, int tile_batch_row,
                    const PositionIndex& kv, const BandTree& bands, TilesByOwner& tiles) {
  const std::vector<Placed> q = PlacedSegments(plan.q.row(batch_row), rank);
  ForEachPiece(q, kv, bands, [&](const Placed& queries, const Placed& keys, const Band& piece) {
    const int64_t q_shift = queries.segment.begin - queries.local;
    const int64_t k_shift = keys.segment.begin - keys.local;
    int64_t diagonal = 0;
    if (!plan.alignments.empty()) {
      diagonal =
          DiagonalAt(plan.alignments.size() == 1 ? plan.alignments[0] : plan.alignments[batch_row],
                     piece.q_begin + q_shift);
    }
    for (const Band& band :
         TilesOf({piece}, plan.q.RowsOf(rank, batch_row), plan.kv.RowsOf(keys.rank, batch_row),
                 KernelOf(plan.spec.dtype()))) {
      v1::Tile tile = ToTile(band, keys.rank, tile_batch_row);
      tile.set_k_position(band.k_begin + k_shift);
      tile.set_distance(band.q_begin + q_shift + diagonal - tile.k_position());
      tiles[keys.rank].push_back(std::move(tile));
    }
  });
}

void AddTiles(const Plan& plan, int rank, int64_t batch_row, int tile_batch_row,
              const PositionIndex& kv, const BandTree& bands, TilesByOwner& tiles) {
  if (ScoresByPosition(plan.spec)) {
    AddPlacedTiles(plan, rank, batch_row, tile_batch_row, kv, bands, tiles);
    return;
  }
  const std::vector<Placed> q = PlacedSegments(plan.q.row(batch_row), rank);
  std::map<int, std::vector<Band>> pieces_of;  // by owner of the keys
  ForEachPiece(q, kv, bands, [&](const Placed&, const Placed& keys, const Band& piece) {
    AddPiece(piece, pieces_of[keys.rank]);
  });
  for (const auto& [owner, pieces] : pieces_of) {
    for (const Band& tile :
         TilesOf(pieces, plan.q.RowsOf(rank, batch_row), plan.kv.RowsOf(owner, batch_row),
                 KernelOf(plan.spec.dtype()))) {
      tiles[owner].push_back(ToTile(tile, owner, tile_batch_row));
    }
  }
}

bool SharedBands(const Plan& plan) { return plan.bands.size() == 1; }

// visit(batch row, the batch row that its tiles name, index of `kv`, bands) for each that differs.
template <typename Visit>
void ForEachBatchRow(const Plan& plan, const SequenceLayout& kv, Visit visit) {
  const PositionIndex first_kv(kv.rows[0]);
  const BandTree first_bands(plan.bands[0]);
  if (plan.q.shared() && kv.shared() && SharedBands(plan) && plan.alignments.size() <= 1) {
    visit(int64_t{0}, -1, first_kv, first_bands);
    return;
  }
  for (int64_t b = 0; b < plan.spec.batch(); ++b) {
    std::optional<PositionIndex> own_kv;
    std::optional<BandTree> own_bands;
    if (!kv.shared()) own_kv.emplace(kv.rows[b]);
    if (!SharedBands(plan)) own_bands.emplace(plan.bands[b]);
    visit(b, static_cast<int>(b), own_kv ? *own_kv : first_kv,
          own_bands ? *own_bands : first_bands);
  }
}

TilesByOwner TilesOfRank(const Plan& plan, int rank) {
  TilesByOwner tiles;
  ForEachBatchRow(plan, plan.kv, [&](int64_t b, int name, const auto& kv, const auto& bands) {
    AddTiles(plan, rank, b, name, kv, bands, tiles);
  });
  return tiles;
}

// The other ranks whose queries see a key of `owner`.
std::set<int> ReadersOf(const Plan& plan, int owner) {
  std::set<int> readers;
  const size_t rows = std::max({plan.q.rows.size(), plan.kv.rows.size(), plan.bands.size()});
  for (size_t b = 0; b < rows; ++b) {
    const PositionIndex q(plan.q.row(b));
    const BandTree bands(SharedBands(plan) ? plan.bands[0] : plan.bands[b]);
    for (const Segment& keys : plan.kv.row(b)[owner]) {
      bands.ForEachNearKeys(keys.begin, keys.end, [&](const Band& band) {
        const Band seen = Cut(band, band.q_begin, band.q_end, keys.begin, keys.end);
        for (const Placed& queries : q.Overlapping(seen.q_begin, seen.q_end))
          readers.insert(queries.rank);
      });
    }
  }
  readers.erase(owner);
  return readers;
}

// The other ranks whose keys the queries of `rank` see.
std::set<int> HoldersFor(const Plan& plan, int rank) {
  std::set<int> holders;
  ForEachBatchRow(plan, plan.kv, [&](int64_t b, int, const auto& kv, const auto& bands) {
    for (const Segment& queries : plan.q.row(b)[rank]) {
      bands.ForEachNearQueries(queries.begin, queries.end, [&](const Band& band) {
        const Band seen = Cut(band, queries.begin, queries.end, band.k_begin, band.k_end);
        for (const Placed& keys : kv.Overlapping(seen.k_begin, seen.k_end))
          holders.insert(keys.rank);
      });
    }
  });
  holders.erase(rank);
  return holders;
}

// Pass-Q: the tiles on the keys of `rank`, by owner of the queries.
TilesByOwner TilesOnKeysOf(const Plan& plan, int rank) {
  std::set<int> readers = ReadersOf(plan, rank);
  readers.insert(rank);
  SequenceLayout own_keys;  // of nobody else
  for (const RowLayout& row : plan.kv.rows) {
    own_keys.rows.emplace_back(row.size());
    own_keys.rows.back()[rank] = row[rank];
  }
  TilesByOwner tiles;
  ForEachBatchRow(plan, own_keys, [&](int64_t b, int name, const auto& kv, const auto& bands) {
    for (const int reader : readers) {
      TilesByOwner on_keys;
      AddTiles(plan, reader, b, name, kv, bands, on_keys);
      for (v1::Tile& tile : on_keys[rank]) {
        tile.set_owner(reader);
        tiles[reader].push_back(std::move(tile));
      }
    }
  });
  return tiles;
}

v1::Transfer MakeTransfer(int peer, int owner) {
  v1::Transfer transfer;
  transfer.set_peer(peer);
  transfer.set_owner(owner);
  return transfer;
}

void AddTo(std::vector<v1::Tile>& tiles, v1::Step& step) {
  for (v1::Tile& tile : tiles) *step.add_tiles() = std::move(tile);
}

// Step t: compute on the shard that started t ranks below, pass it on if anyone further up needs
// it.
std::vector<v1::Step> RingSteps(const Plan& plan, int rank, TilesByOwner tiles) {
  const int ranks = plan.ranks();
  std::vector<v1::Step> steps(ranks);
  int used = 0;
  for (int t = 0; t < ranks; ++t) {
    const int here = (rank - t + ranks) % ranks;
    const int next = (rank - t - 1 + ranks) % ranks;
    if (plan.reach[here] > t) *steps[t].add_sends() = MakeTransfer((rank + 1) % ranks, here);
    if (plan.reach[next] > t)
      *steps[t].add_recvs() = MakeTransfer((rank - 1 + ranks) % ranks, next);
    AddTo(tiles[here], steps[t]);
    if (steps[t].ByteSizeLong() > 0) used = t + 1;
  }
  steps.resize(used);
  return steps;
}

// Step t: compute for the queries that started t ranks below, pass them on if anyone further up
// needs them, and return what was computed in the step before. A step more than the ring's: the
// last partials.
std::vector<v1::Step> PassQSteps(const Plan& plan, int rank, const TilesByOwner& tiles) {
  const int ranks = plan.ranks();
  const std::set<int> holders = HoldersFor(plan, rank);
  std::vector<v1::Step> steps = RingSteps(plan, rank, tiles);
  steps.resize(ranks + 1);
  for (int t = 2; t <= ranks; ++t) {
    const int owner = (rank - (t - 1) + ranks) % ranks, holder = (rank + (t - 1)) % ranks;
    if (tiles.count(owner)) steps[t].add_partial_sends(owner);
    if (holders.count(holder)) steps[t].add_partial_recvs(holder);
  }
  while (!steps.empty() && steps.back().ByteSizeLong() == 0) steps.pop_back();
  return steps;
}

// Step 0: every shard to whoever needs it. Step 1: all tiles.
std::vector<v1::Step> GatherSteps(const Plan& plan, int rank, TilesByOwner tiles) {
  const int ranks = plan.ranks();
  std::vector<v1::Step> steps(ranks == 1 ? 1 : 2);
  const std::set<int> readers = ReadersOf(plan, rank);
  // Neighbours first, so that not everybody sends to the same rank at once.
  for (int distance = 1; distance < ranks; ++distance) {
    const int up = (rank + distance) % ranks;
    const int down = (rank - distance + ranks) % ranks;
    if (readers.count(up)) *steps[0].add_sends() = MakeTransfer(up, rank);
    if (tiles.count(down)) *steps[0].add_recvs() = MakeTransfer(down, down);
  }
  for (int t = 0; t < ranks; ++t) {
    const auto own = tiles.find((rank - t + ranks) % ranks);
    if (own != tiles.end()) AddTo(own->second, steps.back());
  }
  while (!steps.empty() && steps.back().ByteSizeLong() == 0) steps.pop_back();
  return steps;
}

}  // namespace

std::vector<v1::Step> StepsFor(const Plan& plan, int rank) {
  if (plan.options.rotate() == v1::ROTATE_METHOD_PASS_Q)
    return PassQSteps(plan, rank, TilesOnKeysOf(plan, rank));
  TilesByOwner tiles = TilesOfRank(plan, rank);
  if (plan.options.rotate() == v1::ROTATE_METHOD_ALL_GATHER)
    return GatherSteps(plan, rank, std::move(tiles));
  return RingSteps(plan, rank, std::move(tiles));
}

std::vector<v1::Step> BackwardStepsFor(const Plan& plan, int rank) {
  const int ranks = plan.ranks();
  const std::vector<v1::Step> forward = StepsFor(plan, rank);
  std::vector<v1::Step> steps(std::max<size_t>(forward.size(), ranks + 1));
  std::set<int> read;
  for (size_t t = 0; t < forward.size(); ++t) {
    *steps[t].mutable_sends() = forward[t].sends();
    *steps[t].mutable_recvs() = forward[t].recvs();
    for (const v1::Tile& tile : forward[t].tiles()) {
      const int distance = (rank - tile.owner() + ranks) % ranks;
      *steps[distance].add_tiles() = tile;
      if (distance > 0 && read.insert(tile.owner()).second)
        steps[distance + 1].add_partial_sends(tile.owner());
    }
  }
  for (const int reader : ReadersOf(plan, rank))
    steps[(reader - rank + ranks) % ranks + 1].add_partial_recvs(reader);
  while (!steps.empty() && steps.back().ByteSizeLong() == 0) steps.pop_back();
  return steps;
}

v1::Assignment AssignmentFor(const Plan& plan, int rank) {
  v1::Assignment assignment;
  assignment.set_rank(rank);
  assignment.set_ranks(plan.ranks());
  *assignment.mutable_spec() = plan.spec;
  assignment.mutable_spec()->clear_masks();
  assignment.set_return_lse(plan.options.return_lse());
  assignment.set_lse_without_sinks(plan.options.lse_without_sinks());
  for (size_t b = 0; b < plan.q.rows.size(); ++b) assignment.add_q_rows(plan.q.RowsOf(rank, b));
  for (int owner = 0; owner < plan.ranks(); ++owner) {
    v1::ShardRows* shard = assignment.add_kv_shards();
    for (size_t b = 0; b < plan.kv.rows.size(); ++b) shard->add_rows(plan.kv.RowsOf(owner, b));
    if (plan.options.rotate() != v1::ROTATE_METHOD_PASS_Q) continue;
    shard = assignment.add_q_shards();
    for (size_t b = 0; b < plan.q.rows.size(); ++b) shard->add_rows(plan.q.RowsOf(owner, b));
  }
  for (v1::Step& step : StepsFor(plan, rank)) *assignment.add_steps() = std::move(step);
  assignment.set_peak_bytes(plan.peak_bytes[rank]);
  if (!plan.pass.backward) return assignment;
  assignment.set_backward(true);
  assignment.set_d_lse(plan.pass.d_lse);
  for (const int reader : ReadersOf(plan, rank)) assignment.add_readers(reader);
  return assignment;
}

}  // namespace ringserve
