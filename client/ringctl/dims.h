// The dims and the type of a request as flags, for commands that need no tensors of the caller's.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "ringserve/v1/attention.pb.h"

namespace CLI {
class App;
}

namespace ringserve {

// Absent ones follow from others.
struct Dims {
  std::optional<int64_t> batch, q_heads, kv_heads, q_len, kv_len, head_dim, value_dim;
  std::optional<std::string> dtype;

  bool any() const {
    return batch || q_heads || kv_heads || q_len || kv_len || head_dim || value_dim || dtype;
  }
};

// Adds --batch, --q-heads, --kv-heads, --q-len, --kv-len, --head-dim, --value-dim and --dtype,
// shown under `group` in the help. `dims` outlives the parsing.
void AddDims(CLI::App& command, Dims& dims, const std::string& group);

// INVALID_ARGUMENT: q_heads, q_len or head_dim is missing; the message names the flag, but not what
// else the command would take.
absl::StatusOr<v1::AttentionSpec> SpecOf(const Dims& dims, v1::TensorLayout layout);

}  // namespace ringserve
