// Attention by its definition, in fp64, for some queries of some heads that share one K/V head. It
// shares no code with the service: this is what the service's answers are measured against.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "ringserve/client.h"
#include "ringserve/v1/attention.pb.h"

namespace ringserve {

// One row of the answer.
struct RowId {
  int64_t batch = 0, head = 0, query = 0;

  friend bool operator==(const RowId&, const RowId&) = default;
};

struct ReferenceRow {
  std::vector<double> out;  // Dv: 0 where no key is seen
  double lse = 0;           // -inf where no key is seen, and no sink logit
  double lse_without_sinks = 0;
  int64_t keys = 0;  // seen
  // A score is not finite, so that nothing can be said about the row.
  bool undefined = false;

  // What rounding errors of out and lse are measured by, for p the softmax weights and |v_j| the
  // largest magnitude of key j's values: sum p_j |v_j|, sqrt(sum (p_j |v_j|)^2), and the largest
  // |scale| |q| |k_j|, which bounds every score's terms, with the largest number added to a score.
  double value_magnitude = 0;
  double value_spread = 0;
  double score_magnitude = 0;
};

// `rows` lie in batch row `batch` and in the heads that read K/V head `kv_head`. The inputs have
// the sizes that `spec` says. Costs O(rows x keys x dims), in blocks of keys.
std::vector<ReferenceRow> ReferenceAttention(const v1::AttentionSpec& spec,
                                             const AttendInputs& inputs, int64_t batch,
                                             int64_t kv_head, std::span<const RowId> rows);

// First element of the row (batch, head, position) of a tensor of `heads` heads, `length` positions
// and `dim` elements each.
int64_t RowElement(const v1::AttentionSpec& spec, int64_t batch, int64_t head, int64_t position,
                   int64_t heads, int64_t length, int64_t dim);

// Dv.
int64_t ValueDimOf(const v1::AttentionSpec& spec);

}  // namespace ringserve
