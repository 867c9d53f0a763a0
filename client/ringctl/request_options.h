// The options that say which attention is computed and how: those that `attend`, `plan` and `bench`
// share.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "client/ringctl/extras_options.h"
#include "client/ringctl/mask_options.h"
#include "ringserve/v1/attention.pb.h"

namespace CLI {
class App;
}

namespace ringserve {

struct RequestOptions {
  MaskOptions mask;
  ExtrasOptions extras;
  std::optional<double> scale;
  std::string balancer = "auto";
  std::string rotate = "auto";
  int workers = 0;
  int64_t ptrr_block = 0;
  bool ptrr_count_blocks = false;
  std::vector<double> worker_weights;
};

// Adds kMaskFlags, kExtrasFlags, --scale, --balancer, --rotate, --workers, --ptrr-block,
// --ptrr-count-blocks and
// --worker-weights. Values that no request may have are parse errors. `options` outlives the
// parsing.
void AddRequestOptions(CLI::App& command, RequestOptions& options);

// Fills masks and scale of `spec`, whose batch and lengths are set, and what `header_options` has
// of these; the files of `extras` are opened by OpenExtras. INVALID_ARGUMENT as ApplyMaskOptions.
absl::Status ApplyRequestOptions(const RequestOptions& options, v1::AttentionSpec& spec,
                                 v1::AttentionOptions& header_options);

}  // namespace ringserve
