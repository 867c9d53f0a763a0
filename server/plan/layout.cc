#include "server/plan/layout.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <functional>
#include <queue>
#include <utility>

namespace ringserve {
namespace {

// Piece `index` of `pieces`, the first length % pieces of them one longer than the rest.
Segment EvenPiece(int64_t length, int64_t pieces, int64_t index) {
  const int64_t size = length / pieces;
  const int64_t longer = length % pieces;
  const int64_t begin = index * size + std::min(index, longer);
  return {begin, begin + size + (index < longer ? 1 : 0)};
}

// A document in 2W pieces: heads from the first rank to the last, tails from the last to the first.
int64_t RankOfPiece(int64_t piece, int64_t ranks) {
  return piece < ranks ? piece : 2 * ranks - 1 - piece;
}

// Cuts documents one after the other. The longer pieces of one follow on those of the one before:
// together they go round the pieces, which no rank is given twice more than another on the way.
class EvenDealer {
 public:
  explicit EvenDealer(RowLayout& row) : row_(row), pieces_(2 * static_cast<int64_t>(row.size())) {}

  void Deal(int64_t begin, int64_t length) {
    const int64_t size = length / pieces_;
    const int64_t longer = length % pieces_;
    const int64_t wrapped = std::max<int64_t>(0, next_ + longer - pieces_);
    // Ascending, and without a look at pieces that get nothing: documents may be many and short.
    begin = Give(begin, 0, wrapped, size + 1);
    if (size > 0) begin = Give(begin, wrapped, next_, size);
    const int64_t last = std::min(pieces_, next_ + longer);
    begin = Give(begin, next_, last, size + 1);
    if (size > 0) Give(begin, last, pieces_, size);
    next_ = (next_ + longer) % pieces_;
  }

 private:
  int64_t Give(int64_t begin, int64_t first, int64_t last, int64_t size) {
    const int64_t ranks = pieces_ / 2;
    for (int64_t piece = first; piece < last; ++piece) {
      AppendSegment(row_[RankOfPiece(piece, ranks)], {begin, begin + size});
      begin += size;
    }
    return begin;
  }

  RowLayout& row_;
  const int64_t pieces_;
  int64_t next_ = 0;  // the piece that is first to be longer
};

// Likewise by weight: every piece gets its share rounded down, and those that are owed most one
// position more.
class WeightedDealer {
 public:
  WeightedDealer(RowLayout& row, const Weights& weights)
      : row_(row), shares_(SharesOf(weights)), owed_(weights.size()) {}

  void Deal(int64_t begin, int64_t length) {
    const int64_t ranks = static_cast<int64_t>(shares_.size());
    std::vector<int64_t> sizes(2 * ranks);
    std::vector<std::pair<double, int64_t>> waiting;
    int64_t left = length;
    for (int64_t rank = 0; rank < ranks; ++rank) {
      const double share = shares_[rank] * static_cast<double>(length);
      const int64_t size =
          std::min(static_cast<int64_t>(share / 2), left / 2);  // rounding must not overdraw
      sizes[rank] = sizes[2 * ranks - 1 - rank] = size;
      left -= 2 * size;
      owed_[rank] += share - static_cast<double>(2 * size);
      waiting.push_back({-owed_[rank], rank});
      waiting.push_back({1 - owed_[rank], 2 * ranks - 1 - rank});
    }
    const auto last = waiting.begin() + std::min<int64_t>(left, 2 * ranks);
    if (last != waiting.end()) std::nth_element(waiting.begin(), last, waiting.end());
    for (auto lucky = waiting.begin(); lucky != last; ++lucky) {
      ++sizes[lucky->second];
      --owed_[RankOfPiece(lucky->second, ranks)];
    }
    for (int64_t piece = 0; piece < 2 * ranks; ++piece) {
      AppendSegment(row_[RankOfPiece(piece, ranks)], {begin, begin + sizes[piece]});
      begin += sizes[piece];
    }
  }

 private:
  RowLayout& row_;
  const std::vector<double> shares_;
  std::vector<double> owed_;  // by rank: its share of what was dealt, less what it got
};

// Short documents in pieces of about a unit, the first and the last of them together, and so on, as
// head-tail does: to the rank that has least of them for its weight.
class ShortDealer {
 public:
  ShortDealer(RowLayout& row, const Weights& weights, const ShortDocuments& rules)
      : row_(row), rules_(rules), pace_(row.size(), 1.0) {
    if (!weights.empty()) {
      pace_ = SharesOf(weights);
      for (double& pace : pace_) pace = 1 / pace;
    }
    for (int rank = 0; rank < static_cast<int>(row.size()); ++rank) turns_.push({0, rank});
  }

  bool Takes(int64_t length) const { return length < rules_.below; }

  void Deal(int64_t begin, int64_t length) {
    const int64_t pieces = (length + rules_.unit - 1) / rules_.unit;
    const double weight = rules_.by_work ? static_cast<double>(length) : 1;
    std::vector<int> holders;  // of the first half, the middle included
    for (int64_t head = 0; head < (pieces + 1) / 2; ++head) {
      const int64_t tail = pieces - 1 - head;
      auto [load, rank] = turns_.top();
      turns_.pop();
      holders.push_back(rank);
      Give(begin, length, pieces, head, rank);
      const int64_t positions = EvenPiece(length, pieces, head).size() +
                                (tail > head ? EvenPiece(length, pieces, tail).size() : 0);
      turns_.push({load + static_cast<double>(positions) * weight * pace_[rank], rank});
    }
    for (int64_t tail = (pieces + 1) / 2; tail < pieces; ++tail)
      Give(begin, length, pieces, tail, holders[pieces - 1 - tail]);
  }

 private:
  using Turn = std::pair<double, int>;  // load for the weight, rank

  void Give(int64_t begin, int64_t length, int64_t pieces, int64_t index, int rank) {
    const Segment piece = EvenPiece(length, pieces, index);
    AppendSegment(row_[rank], {begin + piece.begin, begin + piece.end});
  }

  RowLayout& row_;
  const ShortDocuments rules_;
  std::vector<double> pace_;
  std::priority_queue<Turn, std::vector<Turn>, std::greater<>> turns_;
};

template <typename Dealer>
void DealDocuments(std::span<const int64_t> documents, int64_t length, ShortDealer short_dealer,
                   Dealer dealer) {
  int64_t begin = 0;
  const auto deal = [&](int64_t document) {
    if (document == 0) return;
    short_dealer.Takes(document) ? short_dealer.Deal(begin, document)
                                 : dealer.Deal(begin, document);
    begin += document;
  };
  for (const int64_t document : documents) deal(document);
  assert(begin <= length);
  deal(length - begin);
}

}  // namespace

std::vector<double> SharesOf(const Weights& weights) {
  const double largest = *std::max_element(weights.begin(), weights.end());
  double sum = 0;
  std::vector<double> shares;
  for (double weight : weights) {
    shares.push_back(weight / largest);  // first, so that no sum overflows
    sum += shares.back();
  }
  for (double& share : shares) share /= sum;
  return shares;
}

int64_t SequenceLayout::RowsOf(int rank, int64_t batch_row) const {
  int64_t rows_held = 0;
  for (const Segment& segment : row(batch_row)[rank]) rows_held += segment.size();
  return rows_held;
}

void AppendSegment(std::vector<Segment>& segments, Segment next) {
  if (next.size() == 0) return;
  if (!segments.empty() && segments.back().end == next.begin) {
    segments.back().end = next.end;
  } else {
    segments.push_back(next);
  }
}

int64_t LayoutSize(const SequenceLayout& layout) {
  int64_t size = 0;
  for (const RowLayout& row : layout.rows) {
    for (const std::vector<Segment>& segments : row) size += 1 + segments.size();
  }
  return size;
}

SequenceLayout ContiguousLayout(int64_t length, int ranks, const Weights& weights) {
  assert(length >= 1 && ranks >= 1);
  RowLayout row(ranks);
  if (weights.empty()) {
    const int64_t size = (length + ranks - 1) / ranks;
    for (int rank = 0; rank < ranks; ++rank) {
      AppendSegment(row[rank],
                    {std::min(length, rank * size), std::min(length, (rank + 1) * size)});
    }
    return {{std::move(row)}};
  }
  const std::vector<double> shares = SharesOf(weights);
  double sum = 0;
  int64_t begin = 0;
  for (int rank = 0; rank < ranks; ++rank) {
    sum += shares[rank];
    const int64_t cut = std::clamp<int64_t>(std::llround(sum * length), begin, length);
    const int64_t end = rank + 1 == ranks ? length : cut;
    AppendSegment(row[rank], {begin, end});
    begin = end;
  }
  return {{std::move(row)}};
}

SequenceLayout EvenLayout(int64_t length, int ranks) {
  assert(length >= 1 && ranks >= 1);
  RowLayout row(ranks);
  for (int rank = 0; rank < ranks; ++rank) AppendSegment(row[rank], EvenPiece(length, ranks, rank));
  return {{std::move(row)}};
}

SequenceLayout HeadTailLayout(int64_t length, int ranks, const Weights& weights) {
  assert(length >= 1 && ranks >= 1);
  return {{PerDocumentRow({}, length, ranks, weights)}};
}

RowLayout PerDocumentRow(std::span<const int64_t> documents, int64_t length, int ranks,
                         const Weights& weights) {
  return PerDocumentRow(documents, length, ranks, weights, ShortDocuments{});
}

RowLayout PerDocumentRow(std::span<const int64_t> documents, int64_t length, int ranks,
                         const Weights& weights, const ShortDocuments& short_documents) {
  assert(length >= 1 && ranks >= 1 && short_documents.unit >= 1);
  assert(weights.empty() || weights.size() == static_cast<size_t>(ranks));
  RowLayout row(ranks);
  ShortDealer short_dealer(row, weights, short_documents);
  if (weights.empty()) {
    DealDocuments(documents, length, std::move(short_dealer), EvenDealer(row));
  } else {
    DealDocuments(documents, length, std::move(short_dealer), WeightedDealer(row, weights));
  }
  return row;
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
