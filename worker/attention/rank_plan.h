// One rank's part of a plan, as the ring loop reads it: a mirror of v1.Assignment without protobuf.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

namespace ringserve {

// Local query rows x local key rows; `owner` is whose keys they are, or with pass-Q whose queries,
// and the other side is this rank's own. Visible iff lo <= (k - k_begin) - (q - q_begin) <= hi. No
// pair is in two tiles of a job.
struct Tile {
  int owner = 0;
  int64_t q_begin = 0, q_end = 0;
  int64_t k_begin = 0, k_end = 0;
  std::optional<int64_t> lo, hi;
  int batch_row = -1;  // -1: every batch row
  // Where the job has a bias or ALiBi slopes: rows and keys of the tile follow each other in the
  // request as they do here. Key j from the corner is the request's key k_position + j, a column of
  // the bias; and row i is at p with p - key = distance + i - j, p its key position.
  int64_t k_position = 0, distance = 0;
};

// The shard of `owner` that travels goes to, or comes from, rank `peer`.
struct Transfer {
  int peer = 0;
  int owner = 0;
};

// Post all transfers, compute the tiles meanwhile, then wait for the transfers.
struct Step {
  std::vector<Transfer> sends;
  std::vector<Transfer> recvs;
  std::vector<Tile> tiles;
  // Pass-Q: the partial of that rank's queries goes there; that of this rank's own comes from
  // there.
  std::vector<int> partial_sends;
  std::vector<int> partial_recvs;
};

struct RankPlan {
  uint64_t job = 0;
  int rank = 0;
  std::vector<int> members;  // by rank: index in the epoch
  std::vector<std::vector<int64_t>>
      kv_rows;  // by rank: rows per batch row (one entry: all the same)
  std::vector<std::vector<int64_t>> q_rows;  // likewise; none: K and V travel (see pass_q)
  std::vector<Step> steps;

  // Queries travel, K and V stay.
  bool pass_q() const { return !q_rows.empty(); }
};

}  // namespace ringserve
