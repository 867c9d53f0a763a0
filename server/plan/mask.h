// The mask compiler: what a request says about visibility becomes disjoint bands in global
// coordinates. Everything behind it knows bands only.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "proto/band.h"
#include "ringserve/v1/attention.pb.h"

namespace ringserve {

// The most bands of a request, over all batch rows that have masks of their own.
inline constexpr int64_t kMostBands = 1 << 18;

// The most comparisons of a request's bands with its blocks and slices.
inline constexpr int64_t kMostComparisons = 1 << 26;

// One list of bands that holds for all batch rows, or one per batch row. The bands of a list are
// disjoint, normalized, never empty and sorted by (q_begin, k_begin); a list without bands sees
// nothing. `spec` is valid (proto/validate.h).
// O((documents + block bits + slices + bands) log n), but for slices and blocks whose boxes meet
// without a common pair: kMostComparisons bounds these.
// FAILED_PRECONDITION: more than kMostBands, in the end or of one condition on the way there, or
//   more than kMostComparisons; names the mask, the number and the limit.
absl::StatusOr<std::vector<std::vector<Band>>> CompileMasks(const v1::AttentionSpec& spec);

// Where the keys of a document lie beside its queries: the key at position p of query q is
// q + diagonal.
struct Alignment {
  int64_t q_begin = 0;  // of the document's queries; they end where the next one's begin
  int64_t diagonal = 0;

  friend bool operator==(const Alignment&, const Alignment&) = default;
};

// By batch row, as CompileMasks: ascending, one for each document that has queries, or for all
// queries. One list for all batch rows where all are the same. O(documents).
std::vector<std::vector<Alignment>> AlignmentsOf(const v1::AttentionSpec& spec);

// The diagonal at query `q`, which lies in a document.
int64_t DiagonalAt(const std::vector<Alignment>& alignments, int64_t q);

// For people: "full", "causal", "causal, q_offset 5", "causal, window 1023 left, all right, 4
// sinks, 32 documents", "blocks of 128 x 128", "4 masks, one per batch row".
std::string DescribeMasks(const v1::AttentionSpec& spec);

}  // namespace ringserve
