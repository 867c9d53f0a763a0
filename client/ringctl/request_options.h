// The options that say which attention is computed and how: those that `attend` and `plan` share.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "ringserve/v1/attention.pb.h"

namespace CLI {
class App;
}

namespace ringserve {

struct RequestOptions {
  std::string mask = "full";  // or "causal"
  std::string mask_file;
  std::optional<int64_t> q_offset;
  bool bottom_right = false;
  std::optional<double> scale;
  std::string balancer = "auto";
  std::string rotate = "auto";
  int workers = 0;
  int64_t ptrr_block = 0;
  bool ptrr_count_blocks = false;
  std::vector<double> worker_weights;
};

// Adds --mask, --mask-file, --q-offset, --bottom-right, --scale, --balancer, --rotate, --workers,
// --ptrr-block, --ptrr-count-blocks and --worker-weights. Values that no request may have are parse
// errors. `options` outlives the parsing.
void AddRequestOptions(CLI::App& command, RequestOptions& options);

// Fills masks and scale of `spec`, whose batch is set, and what `header_options` has of these.
// INVALID_ARGUMENT: options that exclude each other, or a mask file that is
// wrong; names flag and value.
absl::Status ApplyRequestOptions(const RequestOptions& options, v1::AttentionSpec& spec,
                                 v1::AttentionOptions& header_options);

}  // namespace ringserve
