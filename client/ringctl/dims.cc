#include "client/ringctl/dims.h"

#include <utility>

#include <CLI/CLI.hpp>

#include "absl/strings/str_cat.h"
#include "client/ringctl/names.h"

namespace ringserve {

void AddDims(CLI::App& command, Dims& dims, const std::string& group) {
  const auto add = [&](const char* flag, std::optional<int64_t>& dim, const char* what) {
    command.add_option(flag, dim, what)->check(CLI::Range(1, 2'147'483'647))->group(group);
  };
  add("--batch", dims.batch, "Batch rows (default 1)");
  add("--q-heads", dims.q_heads, "Query heads");
  add("--kv-heads", dims.kv_heads, "Key and value heads (default as --q-heads)");
  add("--q-len", dims.q_len, "Queries");
  add("--kv-len", dims.kv_len, "Keys (default as --q-len)");
  add("--head-dim", dims.head_dim, "Dim of queries and keys");
  add("--value-dim", dims.value_dim, "Dim of values (default as --head-dim)");
  command.add_option("--dtype", dims.dtype, "Type of the elements (default f32)")
      ->check(CLI::IsMember(DTypeNames()))
      ->group(group);
}

absl::StatusOr<v1::AttentionSpec> SpecOf(const Dims& dims, v1::TensorLayout layout) {
  const std::pair<const char*, bool> needed[] = {{"--q-heads", dims.q_heads.has_value()},
                                                 {"--q-len", dims.q_len.has_value()},
                                                 {"--head-dim", dims.head_dim.has_value()}};
  for (const auto& [flag, given] : needed) {
    if (!given) return absl::InvalidArgumentError(absl::StrCat(flag, " is missing"));
  }
  v1::AttentionSpec spec;
  spec.set_batch(dims.batch.value_or(1));
  spec.set_q_heads(*dims.q_heads);
  spec.set_kv_heads(dims.kv_heads.value_or(*dims.q_heads));
  spec.set_q_len(*dims.q_len);
  spec.set_kv_len(dims.kv_len.value_or(*dims.q_len));
  spec.set_head_dim(*dims.head_dim);
  spec.set_value_dim(dims.value_dim.value_or(*dims.head_dim));
  spec.set_dtype(*DTypeNamed(dims.dtype.value_or("f32")));
  spec.set_tensor_layout(layout);
  return spec;
}

}  // namespace ringserve
