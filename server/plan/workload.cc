#include "server/plan/workload.h"

#include <algorithm>
#include <cmath>
#include <set>
#include <tuple>
#include <utility>

#include "server/plan/band_tree.h"
#include "server/plan/position_index.h"
#include "server/plan/tiles.h"

namespace ringserve {
namespace {

// Batch rows that look the same.
struct RowGroup {
  const std::vector<Band>* bands = nullptr;
  int64_t rows = 0;
};

bool Less(const std::vector<Band>& a, const std::vector<Band>& b) {
  return std::lexicographical_compare(
      a.begin(), a.end(), b.begin(), b.end(), [](const Band& x, const Band& y) {
        return std::tie(x.q_begin, x.q_end, x.k_begin, x.k_end, x.lo, x.hi) <
               std::tie(y.q_begin, y.q_end, y.k_begin, y.k_end, y.lo, y.hi);
      });
}

std::vector<RowGroup> GroupRows(const std::vector<std::vector<Band>>& bands, int64_t batch) {
  if (bands.size() == 1) return {{&bands[0], batch}};
  std::vector<const std::vector<Band>*> rows;
  for (const std::vector<Band>& row : bands) rows.push_back(&row);
  std::sort(rows.begin(), rows.end(), [](const auto* a, const auto* b) { return Less(*a, *b); });
  std::vector<RowGroup> groups;
  for (const std::vector<Band>* row : rows) {
    if (groups.empty() || *groups.back().bands != *row) groups.push_back({row, 0});
    ++groups.back().rows;
  }
  return groups;
}

struct Interval {
  int64_t begin = 0, end = 0;
};

// One layout of queries and keys with all the batch rows that share it.
class Survey {
 public:
  Survey(const RowLayout& q, const RowLayout& kv, std::vector<RowGroup> groups, Tiling tiling,
         Workload& workload)
      : q_(q), kv_(kv), groups_(std::move(groups)), tiling_(tiling), workload_(workload) {
    for (const RowGroup& group : groups_) trees_.emplace_back(*group.bands);
  }

  // Fills work, needs and piece_pairs; adds to `pieces` by rank. False: a rank has more than
  // `most`.
  bool Totals(std::vector<int64_t>& pieces, int64_t most) {
    std::vector<Interval> seen;
    const auto survey = [&](int rank, const Segment& queries) {
      ForEachStrip(queries, [&](const Band& strip, int64_t rows) {
        workload_.work[rank] += Area(strip) * rows;
        workload_.piece_pairs += kv_.Overlapping(strip.k_begin, strip.k_end).size();
        pieces[rank] += TilesAtMost(strip) * (OneForAllRows() ? 1 : rows);
        seen.push_back({strip.k_begin, strip.k_end});
      });
    };
    for (int rank = 0; rank < workload_.ranks; ++rank) {
      seen.clear();
      for (const Segment& queries : q_[rank]) {
        survey(rank, queries);
        if (pieces[rank] > most) return false;
      }
      MarkNeeds(rank, seen);
    }
    return true;
  }

  // Adds to `pieces` by rank of the keys: each has at most so many tiles. Looks at all piece pairs.
  void PiecesOfKeys(std::vector<int64_t>& pieces) const {
    const auto survey = [&](const Segment& queries) {
      ForEachStrip(queries, [&](const Band& strip, int64_t rows) {
        AddTilesAtMost(strip, OneForAllRows() ? 1 : rows, pieces);
      });
    };
    for (const std::vector<Segment>& segments : q_) {
      for (const Segment& queries : segments) survey(queries);
    }
  }

  // Adds to `pair_work` [rank * ranks + owner].
  void PairWork(std::vector<uint64_t>& pair_work) const {
    const auto survey = [&](uint64_t* row, const Segment& queries) {
      ForEachStrip(queries, [&](const Band& strip, int64_t rows) {
        // Between these keys no diagonal cuts the strip: no need to ask for the area.
        const int64_t full_begin =
            strip.lo == Band::kUnboundedLo ? strip.k_begin : strip.q_end - 1 + strip.lo;
        const int64_t full_end =
            strip.hi == Band::kUnboundedHi ? strip.k_end : strip.q_begin + strip.hi + 1;
        const uint64_t queries_in_strip = strip.q_end - strip.q_begin;
        for (const Placed& keys : kv_.Overlapping(strip.k_begin, strip.k_end)) {
          const int64_t begin = std::max(keys.segment.begin, strip.k_begin);
          const int64_t end = std::min(keys.segment.end, strip.k_end);
          const uint64_t area = begin >= full_begin && end <= full_end
                                    ? queries_in_strip * (end - begin)
                                    : Area(Cut(strip, strip.q_begin, strip.q_end, begin, end));
          row[keys.rank] += area * rows;
        }
      });
    };
    for (int rank = 0; rank < workload_.ranks; ++rank) {
      for (const Segment& queries : q_[rank])
        survey(&pair_work[static_cast<size_t>(rank) * workload_.ranks], queries);
    }
  }

 private:
  bool OneForAllRows() const { return groups_.size() == 1 && !tiling_.per_batch_row; }

  // The most tiles that a strip becomes (see TilesOf). Keys that all its queries see are one run in
  // the shard of each owner, whose positions ascend, where runs are fused; each segment of the
  // others is a tile of its own, and adds two to those of a window, where the kernel wants it cut.
  int64_t TilesAtMost(const Band& strip) const {
    if (strip.lo != Band::kUnboundedLo) {
      const int64_t crossed = kv_.Overlapping(strip.k_begin, strip.k_end).size();
      if (tiling_.kernel == Kernel::kAnyBand) return crossed;
      return 2 * crossed + MostTiles(strip, tiling_.kernel);
    }
    const int64_t all_see = strip.hi == Band::kUnboundedHi
                                ? strip.k_end
                                : std::min(strip.k_end, strip.q_begin + strip.hi);
    const int64_t runs = kv_.Overlapping(strip.k_begin, all_see).size();
    const int64_t cut = kv_.Overlapping(all_see, strip.k_end).size();
    return (tiling_.fuses ? std::min<int64_t>(runs, workload_.ranks) : runs) + cut;
  }

  // Likewise, `rows` times, of each rank that holds some of the keys.
  void AddTilesAtMost(const Band& strip, int64_t rows, std::vector<int64_t>& pieces) const {
    const bool window = strip.lo != Band::kUnboundedLo;
    const bool cuts = window && tiling_.kernel != Kernel::kAnyBand;
    const int64_t all_see = window ? strip.k_begin
                            : strip.hi == Band::kUnboundedHi
                                ? strip.k_end
                                : std::min(strip.k_end, strip.q_begin + strip.hi);
    std::set<int> ranks;
    for (const Placed& keys : kv_.Overlapping(strip.k_begin, all_see)) {
      if (ranks.insert(keys.rank).second || !tiling_.fuses) pieces[keys.rank] += rows;
    }
    ranks.clear();
    for (const Placed& keys : kv_.Overlapping(all_see, strip.k_end)) {
      pieces[keys.rank] += (cuts ? 2 : 1) * rows;
      if (cuts && ranks.insert(keys.rank).second)
        pieces[keys.rank] += MostTiles(strip, tiling_.kernel) * rows;
    }
  }

  // What each band shows to one segment of queries: visit(band cut to it, batch rows).
  template <typename Visit>
  void ForEachStrip(const Segment& queries, Visit visit) const {
    for (size_t i = 0; i < groups_.size(); ++i) {
      const int64_t begin = queries.begin, end = queries.end;
      trees_[i].ForEachNearQueries(begin, end, [&](const Band& band) {
        const Band strip = Cut(band, begin, end, band.k_begin, band.k_end);
        if (!Empty(strip)) visit(strip, groups_[i].rows);
      });
    }
  }

  // A strip's keys have no gap, so whoever holds one of them is needed. All strips of a rank are
  // merged first: many of them may show the same keys, which then count once.
  void MarkNeeds(int rank, std::vector<Interval>& seen) {
    std::sort(seen.begin(), seen.end(),
              [](const Interval& a, const Interval& b) { return a.begin < b.begin; });
    uint8_t* const needs = &workload_.needs[static_cast<size_t>(rank) * workload_.ranks];
    int64_t missing = std::count(needs, needs + workload_.ranks, 0);
    int64_t done = 0;
    for (const Interval& interval : seen) {
      for (const Placed& keys : kv_.Overlapping(std::max(done, interval.begin), interval.end)) {
        missing -= needs[keys.rank] == 0;
        needs[keys.rank] = 1;
        if (missing == 0) return;
      }
      done = std::max(done, interval.end);
    }
  }

  const RowLayout& q_;
  PositionIndex kv_;
  std::vector<RowGroup> groups_;
  std::vector<BandTree> trees_;
  const Tiling tiling_;
  Workload& workload_;
};

// Rounded up, so that the steps of a rank are never less than all of its work.
uint64_t Paced(uint64_t pairs, int rank, std::span<const double> pace) {
  if (pace.empty()) return pairs;
  return static_cast<uint64_t>(
      std::ceil(std::min(static_cast<double>(pairs) * pace[rank], 0x1p62)));
}

// The busiest rank of every step, no more than all of its work and than all pairs of the two
// shards.
void BoundLockstep(const SequenceLayout& q, const SequenceLayout& kv, int64_t batch,
                   std::span<const double> pace, Workload& workload) {
  const int ranks = workload.ranks;
  std::vector<uint64_t> q_rows(ranks), kv_rows(ranks);
  for (int64_t b = 0; b < std::max<int64_t>(q.rows.size(), kv.rows.size()); ++b) {
    for (int rank = 0; rank < ranks; ++rank) {
      q_rows[rank] = std::max<uint64_t>(q_rows[rank], q.RowsOf(rank, b));
      kv_rows[rank] = std::max<uint64_t>(kv_rows[rank], kv.RowsOf(rank, b));
    }
  }
  for (int rank = 0; rank < ranks; ++rank) {
    for (int owner = 0; owner < ranks; ++owner) {
      if (!workload.Needs(rank, owner)) continue;
      uint64_t pairs = 0;
      if (__builtin_mul_overflow(q_rows[rank] * kv_rows[owner], batch, &pairs))
        pairs = workload.work[rank];
      uint64_t& busiest = workload.lockstep[workload.StepOf(rank, owner)];
      busiest = std::max(busiest, Paced(std::min(pairs, workload.work[rank]), rank, pace));
    }
  }
  workload.lockstep_is_bound = true;
}

void ExactLockstep(const std::vector<Survey>& surveys, std::span<const double> pace,
                   Workload& workload) {
  const int ranks = workload.ranks;
  std::vector<uint64_t> pair_work(static_cast<size_t>(ranks) * ranks);
  for (const Survey& survey : surveys) survey.PairWork(pair_work);
  for (int rank = 0; rank < ranks; ++rank) {
    for (int owner = 0; owner < ranks; ++owner) {
      uint64_t& busiest = workload.lockstep[workload.StepOf(rank, owner)];
      busiest = std::max(busiest,
                         Paced(pair_work[static_cast<size_t>(rank) * ranks + owner], rank, pace));
    }
  }
}

std::vector<Survey> MakeSurveys(const SequenceLayout& q, const SequenceLayout& kv,
                                const std::vector<std::vector<Band>>& bands, int64_t batch,
                                Tiling tiling, Workload& workload) {
  std::vector<Survey> surveys;
  if (q.shared() && kv.shared()) {
    surveys.emplace_back(q.rows[0], kv.rows[0], GroupRows(bands, batch), tiling, workload);
    return surveys;
  }
  for (int64_t b = 0; b < batch; ++b) {
    const std::vector<Band>& row = bands.size() == 1 ? bands[0] : bands[b];
    surveys.emplace_back(q.row(b), kv.row(b), std::vector<RowGroup>{{&row, 1}}, tiling, workload);
  }
  return surveys;
}

// Queries for keys and keys for queries.
std::vector<std::vector<Band>> Transposed(const std::vector<std::vector<Band>>& bands) {
  std::vector<std::vector<Band>> transposed = bands;
  for (std::vector<Band>& row : transposed) {
    for (Band& band : row) {
      std::swap(band.q_begin, band.k_begin);
      std::swap(band.q_end, band.k_end);
      const int64_t lo = band.lo;
      band.lo = band.hi == Band::kUnboundedHi ? Band::kUnboundedLo : -band.hi;
      band.hi = lo == Band::kUnboundedLo ? Band::kUnboundedHi : -lo;
    }
  }
  return transposed;
}

void FindReach(Workload& workload) {
  const int ranks = workload.ranks;
  for (int rank = 0; rank < ranks; ++rank) {
    for (int owner = 0; owner < ranks; ++owner) {
      if (!workload.Needs(rank, owner)) continue;
      workload.reach[owner] = std::max(workload.reach[owner], workload.StepOf(rank, owner));
    }
  }
}

}  // namespace

Workload MakeWorkload(const SequenceLayout& q, const SequenceLayout& kv,
                      const std::vector<std::vector<Band>>& bands, int64_t batch,
                      std::span<const double> pace, Tiling tiling, int64_t most_pieces) {
  Workload workload;
  workload.ranks = q.ranks();
  workload.work.resize(workload.ranks);
  workload.lockstep.resize(workload.ranks);
  workload.reach.resize(workload.ranks);
  workload.needs.resize(static_cast<size_t>(workload.ranks) * workload.ranks);

  std::vector<Survey> surveys = MakeSurveys(q, kv, bands, batch, tiling, workload);
  std::vector<int64_t> pieces(workload.ranks);
  for (Survey& survey : surveys) {
    if (survey.Totals(pieces, most_pieces)) continue;
    workload.pieces = most_pieces + 1;
    return workload;
  }
  workload.pieces = *std::max_element(pieces.begin(), pieces.end());
  FindReach(workload);
  if (workload.piece_pairs > kMostPiecePairs) {
    BoundLockstep(q, kv, batch, pace, workload);
  } else {
    ExactLockstep(surveys, pace, workload);
  }
  // No step waits for more than all ranks' work in it: the sum cannot exceed the total.
  uint64_t total = 0;
  for (int rank = 0; rank < workload.ranks; ++rank) {
    workload.paced.push_back(Paced(workload.work[rank], rank, pace));
    total = std::min(uint64_t{1} << 62, total + workload.paced[rank]);
  }
  for (uint64_t pairs : workload.lockstep) {
    workload.lockstep_total = std::min(total, workload.lockstep_total + std::min(total, pairs));
  }
  return workload;
}

Workload MakePassQWorkload(const SequenceLayout& q, const SequenceLayout& kv,
                           const std::vector<std::vector<Band>>& bands, int64_t batch,
                           std::span<const double> pace, Tiling tiling, int64_t most_pieces) {
  // Keys are to travelling queries what queries are to travelling keys, but for the tiles, which
  // are cut by rows of queries in any case.
  Workload workload = MakeWorkload(kv, q, Transposed(bands), batch, pace);
  std::vector<int64_t> pieces(workload.ranks);
  if (workload.piece_pairs > kMostPiecePairs) {
    workload.pieces = most_pieces + 1;
    return workload;
  }
  for (const Survey& survey : MakeSurveys(q, kv, bands, batch, tiling, workload))
    survey.PiecesOfKeys(pieces);
  workload.pieces = *std::max_element(pieces.begin(), pieces.end());
  return workload;
}

}  // namespace ringserve
