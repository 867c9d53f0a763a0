// The options that add to scores: files with a bias, ALiBi slopes or sink logits.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "client/ringctl/safetensors.h"
#include "ringserve/client.h"
#include "ringserve/v1/attention.pb.h"

namespace CLI {
class App;
}

namespace ringserve {

struct ExtrasOptions {
  std::optional<std::string> alibi, sink_logits, bias;
  bool lse_without_sinks = false;
};

// Every flag that AddExtrasOptions adds.
inline constexpr const char* kExtrasFlags[] = {"--alibi", "--sink-logits", "--bias",
                                               "--lse-without-sinks"};

// Adds kExtrasFlags, shown under `group` in the help. `options` outlives the parsing.
void AddExtrasOptions(CLI::App& command, ExtrasOptions& options, const std::string& group);

// The files that are open; the tensors lie in them.
struct ExtrasFiles {
  std::vector<std::unique_ptr<SafetensorsFile>> files;
};

// Opens the files that are named and fills what `spec`, whose dims and dtype are set, and `inputs`
// have of extras: "alibi_slopes" and "sink_logits", F32 [Hq]; "bias", [1 or B, 1 or Hq, Tq, Tk], of
// the dtype of q, or BOOL or U8. INVALID_ARGUMENT and others: a file cannot be read (see
// SafetensorsFile) or lacks the tensor, or it has another shape or dtype; names file and tensor.
absl::StatusOr<ExtrasFiles> OpenExtras(const ExtrasOptions& options, v1::AttentionSpec& spec,
                                       AttendInputs& inputs);

}  // namespace ringserve
