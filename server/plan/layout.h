// Layouts: which rank holds which positions of a sequence. Value types and the balancers that make
// them; pure integers.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "ringserve/v1/tensor.pb.h"

namespace ringserve {

// Global positions [begin, end); never empty inside a layout.
struct Segment {
  int64_t begin = 0;
  int64_t end = 0;

  int64_t size() const { return end - begin; }
  friend bool operator==(const Segment&, const Segment&) = default;
};

// One batch row: by rank, the ordered list of segments it holds. A rank may hold none.
using RowLayout = std::vector<std::vector<Segment>>;

// One RowLayout for all batch rows, or one per batch row. Every position belongs to exactly one
// rank.
struct SequenceLayout {
  std::vector<RowLayout> rows;

  const RowLayout& row(int64_t batch_row) const {
    return rows.size() == 1 ? rows[0] : rows[batch_row];
  }
  bool shared() const { return rows.size() == 1; }
  int ranks() const { return static_cast<int>(rows[0].size()); }
  // Positions that `rank` holds of `batch_row`.
  int64_t RowsOf(int rank, int64_t batch_row) const;
  friend bool operator==(const SequenceLayout&, const SequenceLayout&) = default;
};

// How much of the sequence each rank takes, in proportion: positive finite numbers by rank. Empty:
// all the same, which is what the functions below say of themselves; then no weight is looked at.
using Weights = std::vector<double>;

// By rank: its part of the whole, which is 1. `weights` are not empty.
std::vector<double> SharesOf(const Weights& weights);

// torch.chunk: ceil(length / ranks) positions each, the last short or empty. length >= 1, ranks
// >= 1. With weights: cuts at the rounded cumulative shares of `length`.
SequenceLayout ContiguousLayout(int64_t length, int ranks, const Weights& weights = {});

// Contiguous pieces whose sizes differ by at most one.
SequenceLayout EvenLayout(int64_t length, int ranks);

// 2W pieces, rank r holds pieces r and 2W-1-r: PyTorch's _HeadTailLoadBalancer where it accepts the
// length (length % 2W == 0); elsewhere pieces and the ranks' totals differ by at most one. With
// weights: both pieces of a rank take its share.
SequenceLayout HeadTailLayout(int64_t length, int ranks, const Weights& weights = {});

// Head-tail inside each document of one batch row, rank-major: a rank's positions ascend. Equals
// PyTorch's _PerDocumentHeadTailLoadBalancer where it accepts the lengths (each % 2W == 0).
// Elsewhere the pieces of a document differ by at most one position, and so do the ranks' totals:
// where a document does not divide, its longer pieces follow on those of the document before.
// Positions past the documents (length - their sum >= 0) are cut like one more document. With
// weights: pieces in proportion, and no rank's total is off its share by more than two positions.
RowLayout PerDocumentRow(std::span<const int64_t> documents, int64_t length, int ranks,
                         const Weights& weights = {});

// Documents that are not worth 2W pieces.
struct ShortDocuments {
  int64_t below = 0;     // documents of fewer positions are short; 0: none
  int64_t unit = 1;      // cut into pieces of about so many (no more; they differ by at most one)
  bool by_work = false;  // a piece weighs its positions times the document's; else its positions
};

// Likewise, but for the short ones: the first and the last of their pieces go to the same rank, and
// so on, each two to the rank that has least of them for its weight. Without by_work the ranks'
// totals differ by up to 2 units more.
RowLayout PerDocumentRow(std::span<const int64_t> documents, int64_t length, int ranks,
                         const Weights& weights, const ShortDocuments& short_documents);

// Continues `segments`: a segment that begins where the last one ends lengthens it; an empty one
// changes nothing. Fewer segments are fewer tiles and fewer runs of bytes.
void AppendSegment(std::vector<Segment>& segments, Segment next);

// What a layout takes, about: its segments and its lists of them.
int64_t LayoutSize(const SequenceLayout& layout);

// The layout as a permutation of one batch row: position i of the result holds this global
// position, rank 0's first (PyTorch's _generate_indices), and its inverse (restore=True).
std::vector<int64_t> Permutation(const RowLayout& row);
std::vector<int64_t> InversePermutation(const RowLayout& row);

v1::SequenceLayout ToProto(const SequenceLayout& layout);

}  // namespace ringserve
