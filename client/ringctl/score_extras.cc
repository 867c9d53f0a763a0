#include "client/ringctl/score_extras.h"

#include <algorithm>
#include <cmath>

#include "client/ringctl/elements.h"

namespace ringserve {
namespace {

std::vector<double> PerHead(bool given, std::span<const std::byte> tensor, int64_t heads) {
  if (!given) return {};
  std::vector<double> values(heads);
  ReadElements(tensor, v1::DTYPE_F32, 0, values);
  return values;
}

}  // namespace

ScoreExtras::ScoreExtras(const v1::AttentionSpec& spec, const AttendInputs& inputs)
    : spec_(spec),
      inputs_(inputs),
      slopes_(PerHead(spec.alibi_slopes(), inputs.alibi_slopes, spec.q_heads())),
      sinks_(PerHead(spec.sink_logits(), inputs.sink_logits, spec.q_heads())) {}

bool ScoreExtras::Hides(int64_t element, double& bias) const {
  bias = 0;
  if (spec_.bias().boolean()) return inputs_.bias[element] == std::byte{0};
  ReadElements(inputs_.bias, spec_.dtype(), element, {&bias, 1});
  return bias == -kInfinity;
}

int64_t ScoreExtras::Apply(int64_t batch, int64_t head, int64_t query, const VisibleKeys& visible,
                           int64_t begin, int64_t end, uint8_t* sees, double* scores,
                           double& largest) const {
  if (slopes_.empty() && !spec_.has_bias()) return 0;
  const int64_t plane =
      (spec_.bias().per_batch() ? batch : 0) * (spec_.bias().per_head() ? spec_.q_heads() : 1) +
      (spec_.bias().per_head() ? head : 0);
  const int64_t row = (plane * spec_.q_len() + query) * spec_.kv_len();
  int64_t hidden = 0;
  for (int64_t key = begin; key < end; ++key) {
    uint8_t& seen = sees[key - begin];
    if (seen == 0) continue;
    double added = 0;
    if (spec_.has_bias() && Hides(row + key, added)) {
      seen = 0;
      ++hidden;
      continue;
    }
    if (!slopes_.empty()) added -= slopes_[head] * static_cast<double>(visible.Distance(key));
    scores[key - begin] += added;
    if (std::isfinite(added)) largest = std::max(largest, std::fabs(added));
  }
  return hidden;
}

std::optional<double> ScoreExtras::Sink(int64_t head) const {
  if (sinks_.empty() || sinks_[head] == -kInfinity) return std::nullopt;
  return sinks_[head];
}

}  // namespace ringserve
