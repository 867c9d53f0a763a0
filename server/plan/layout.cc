#include "server/plan/layout.h"

#include <algorithm>
#include <cassert>

namespace ringserve {
namespace {

// Segments that continue each other are one: fewer tiles and fewer runs of bytes.
void Append(std::vector<Segment>& segments, Segment next) {
  if (next.size() == 0) return;
  if (!segments.empty() && segments.back().end == next.begin) {
    segments.back().end = next.end;
  } else {
    segments.push_back(next);
  }
}

// Piece `index` of `pieces`, the first length % pieces of them one longer than the rest.
Segment EvenPiece(int64_t length, int64_t pieces, int64_t index) {
  const int64_t size = length / pieces;
  const int64_t longer = length % pieces;
  const int64_t begin = index * size + std::min(index, longer);
  return {begin, begin + size + (index < longer ? 1 : 0)};
}

}  // namespace

int64_t SequenceLayout::RowsOf(int rank, int64_t batch_row) const {
  int64_t rows_held = 0;
  for (const Segment& segment : row(batch_row)[rank]) rows_held += segment.size();
  return rows_held;
}

SequenceLayout ContiguousLayout(int64_t length, int ranks) {
  assert(length >= 1 && ranks >= 1);
  const int64_t size = (length + ranks - 1) / ranks;
  RowLayout row(ranks);
  for (int rank = 0; rank < ranks; ++rank) {
    Append(row[rank], {std::min(length, rank * size), std::min(length, (rank + 1) * size)});
  }
  return {{std::move(row)}};
}

SequenceLayout EvenLayout(int64_t length, int ranks) {
  assert(length >= 1 && ranks >= 1);
  RowLayout row(ranks);
  for (int rank = 0; rank < ranks; ++rank) Append(row[rank], EvenPiece(length, ranks, rank));
  return {{std::move(row)}};
}

SequenceLayout HeadTailLayout(int64_t length, int ranks) {
  assert(length >= 1 && ranks >= 1);
  // The longer pieces come first: up to W of them are heads of different ranks, the others tails of
  // different ranks, so the ranks' totals differ by at most one, too.
  const int64_t pieces = 2 * static_cast<int64_t>(ranks);
  RowLayout row(ranks);
  for (int rank = 0; rank < ranks; ++rank) {
    Append(row[rank], EvenPiece(length, pieces, rank));
    Append(row[rank], EvenPiece(length, pieces, pieces - 1 - rank));
  }
  return {{std::move(row)}};
}

std::vector<int64_t> Permutation(const RowLayout& row) {
  std::vector<int64_t> positions;
  for (const std::vector<Segment>& segments : row) {
    for (const Segment& segment : segments) {
      for (int64_t p = segment.begin; p < segment.end; ++p) positions.push_back(p);
    }
  }
  return positions;
}

std::vector<int64_t> InversePermutation(const RowLayout& row) {
  const std::vector<int64_t> positions = Permutation(row);
  std::vector<int64_t> inverse(positions.size());
  for (size_t i = 0; i < positions.size(); ++i) inverse[positions[i]] = static_cast<int64_t>(i);
  return inverse;
}

v1::SequenceLayout ToProto(const SequenceLayout& layout) {
  v1::SequenceLayout proto;
  for (const RowLayout& row : layout.rows) {
    v1::RowLayout* row_proto = proto.add_rows();
    for (const std::vector<Segment>& segments : row) {
      v1::RankSegments* rank_proto = row_proto->add_ranks();
      for (const Segment& segment : segments) {
        v1::Segment* segment_proto = rank_proto->add_segments();
        segment_proto->set_begin(segment.begin);
        segment_proto->set_end(segment.end);
      }
    }
  }
  return proto;
}

}  // namespace ringserve
