// The options that say which keys a query sees: one mask for all batch rows from flags, or the
// masks of a file. Block masks, slices, documents whose keys are not cut as their queries, and
// masks per batch row need the file.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "ringserve/v1/attention.pb.h"

namespace CLI {
class App;
}

namespace ringserve {

struct MaskOptions {
  std::string mask = "full";  // or "causal"
  std::optional<int64_t> q_offset, sinks, prefix;
  bool bottom_right = false;
  std::optional<std::string> window;     // "L,R"; a side may be empty
  std::optional<std::string> documents;  // "N,N,..."
  std::optional<std::string> file;
};

// Every flag that AddMaskOptions adds.
inline constexpr const char* kMaskFlags[] = {"--mask",      "--q-offset", "--bottom-right",
                                             "--window",    "--sinks",    "--prefix",
                                             "--documents", "--mask-file"};

// Adds kMaskFlags, shown under `group` in the help; --mask-file excludes the others. Numbers out of
// range are parse errors. `options` outlives the parsing.
void AddMaskOptions(CLI::App& command, MaskOptions& options, const std::string& group);

// Fills the masks of `spec`, whose batch and lengths are set; none where nothing is hidden and no
// alignment given. `alibi`: there are slopes, whose distances count from the alignment.
// INVALID_ARGUMENT: a value that cannot be read, an option that would do nothing without another,
// documents longer than the sequence, a mask file that is wrong; names flag and value.
absl::Status ApplyMaskOptions(const MaskOptions& options, bool alibi, v1::AttentionSpec& spec);

}  // namespace ringserve
