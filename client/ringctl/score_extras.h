// What a request adds to its scores beside the masks, by the words of attention.proto: bias, ALiBi
// slopes and sink logits. The verifier's own reading, apart from the service's.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "client/ringctl/visible_keys.h"
#include "ringserve/client.h"
#include "ringserve/v1/attention.pb.h"

namespace ringserve {

class ScoreExtras {
 public:
  // Both outlive this; the inputs have the sizes that `spec` says.
  ScoreExtras(const v1::AttentionSpec& spec, const AttendInputs& inputs);

  // Of the row (batch, head, query), whose keys `visible` knows: adds to scores[j - begin] for the
  // keys j of [begin, end) whose sees[j - begin] is 1, and makes that 0 where the bias hides one.
  // Returns how many it hides. `largest` becomes at least any |number| that was added.
  int64_t Apply(int64_t batch, int64_t head, int64_t query, const VisibleKeys& visible,
                int64_t begin, int64_t end, uint8_t* sees, double* scores, double& largest) const;

  // The head's sink logit; none where it is -inf, too.
  std::optional<double> Sink(int64_t head) const;

 private:
  bool Hides(int64_t element, double& bias) const;

  const v1::AttentionSpec& spec_;
  const AttendInputs& inputs_;
  std::vector<double> slopes_, sinks_;  // by head; empty: none
};

}  // namespace ringserve
