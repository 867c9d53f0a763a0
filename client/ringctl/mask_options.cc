#include "client/ringctl/mask_options.h"

#include <algorithm>
#include <utility>
#include <vector>

#include <CLI/CLI.hpp>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "client/ringctl/mask_file.h"
#include "proto/validate.h"

namespace ringserve {
namespace {

absl::Status Wrong(const char* flag, const std::string& value, absl::string_view why) {
  return absl::InvalidArgumentError(
      absl::StrCat(flag, " is ", value.empty() ? "''" : value, ": ", why));
}

// Digits alone, of [0, most]; nothing where it is something else.
std::optional<int64_t> Number(absl::string_view text, int64_t most) {
  int64_t value = 0;
  const bool digits =
      std::all_of(text.begin(), text.end(), [](char c) { return absl::ascii_isdigit(c); });
  if (!digits || !absl::SimpleAtoi(text, &value) || value > most) return std::nullopt;
  return value;
}

absl::Status ApplyWindow(const std::string& text, v1::Mask& mask) {
  const std::vector<std::string> sides = absl::StrSplit(text, ',');
  if (sides.size() != 2) return Wrong("--window", text, "must be L,R");
  if (text == ",") return Wrong("--window", text, "at least one side must be a number");
  for (size_t i = 0; i < 2; ++i) {
    if (sides[i].empty()) continue;
    const std::optional<int64_t> keys = Number(sides[i], kMaxOffset);
    if (!keys.has_value()) {
      return Wrong("--window", text,
                   absl::StrCat("'", sides[i], "' must be of [0, ", kMaxOffset, "] or empty"));
    }
    if (i == 0) mask.mutable_window()->set_left(*keys);
    if (i == 1) mask.mutable_window()->set_right(*keys);
  }
  return absl::OkStatus();
}

absl::Status ApplyDocuments(const std::string& text, const v1::AttentionSpec& spec,
                            v1::Mask& mask) {
  int64_t sum = 0;
  for (const absl::string_view part : absl::StrSplit(text, ',')) {
    const std::optional<int64_t> length = Number(part, kMaxDim);
    if (!length.has_value()) {
      return Wrong("--documents", text, absl::StrCat("'", part, "' must be of [0, ", kMaxDim, "]"));
    }
    sum += *length;
    mask.mutable_documents()->add_q_lengths(*length);
  }
  for (const auto& [name, length] :
       {std::pair{"queries", spec.q_len()}, std::pair{"keys", spec.kv_len()}}) {
    if (sum <= length) continue;
    return Wrong("--documents", text,
                 absl::StrCat("they sum to ", sum, ", more than the ", length, " ", name));
  }
  return absl::OkStatus();
}

// What would do nothing without another option.
absl::Status CheckNeeds(const MaskOptions& options, bool alibi) {
  const bool causal = options.mask == "causal";
  // An alignment shifts their diagonals, and the distances that slopes are multiplied by.
  if (!causal && !options.window.has_value() && !alibi) {
    if (options.q_offset.has_value()) {
      return Wrong("--q-offset", absl::StrCat(*options.q_offset),
                   "it needs --mask causal, --window or --alibi");
    }
    if (options.bottom_right) {
      return absl::InvalidArgumentError(
          "--bottom-right is given: it needs --mask causal, --window or --alibi");
    }
  }
  if (options.sinks.has_value() && !options.window.has_value())
    return Wrong("--sinks", absl::StrCat(*options.sinks), "it needs --window");
  if (options.prefix.has_value() && !causal)
    return Wrong("--prefix", absl::StrCat(*options.prefix), "it needs --mask causal");
  return absl::OkStatus();
}

absl::Status ApplyFile(const std::string& path, v1::AttentionSpec& spec) {
  absl::StatusOr<MaskFile> file = ReadMaskFile(path);
  if (!file.ok())
    return absl::InvalidArgumentError(absl::StrCat("--mask-file ", file.status().message()));
  if (file->per_row && file->masks.size() != spec.batch()) {
    return absl::InvalidArgumentError(
        absl::StrCat("--mask-file ", path, " is an array of ", file->masks.size(),
                     " masks: must have one per batch row (", spec.batch(), ")"));
  }
  *spec.mutable_masks() = std::move(file->masks);
  return absl::OkStatus();
}

}  // namespace

void AddMaskOptions(CLI::App& command, MaskOptions& options, const std::string& group) {
  command.add_option("--mask", options.mask, "Which keys a query sees: all, or none after it")
      ->check(CLI::IsMember({"full", "causal"}))
      ->capture_default_str();
  CLI::Option* q_offset =
      command
          .add_option(
              "--q-offset", options.q_offset,
              "With --mask causal, --window or --alibi: the key position of query 0 (default 0)")
          ->check(CLI::Range(-kMaxOffset, kMaxOffset));
  command
      .add_flag("--bottom-right", options.bottom_right,
                "With --mask causal, --window or --alibi: the last query sits on the last key")
      ->excludes(q_offset);
  command
      .add_option("--window", options.window,
                  "A query sees L keys before its position and R after it; an empty side is open")
      ->type_name("L,R");
  command.add_option("--sinks", options.sinks, "With --window: the first N keys pass it")
      ->check(CLI::Range(int64_t{0}, kMaxOffset));
  command.add_option("--prefix", options.prefix, "With --mask causal: the first N keys pass it")
      ->check(CLI::Range(int64_t{0}, kMaxOffset));
  command
      .add_option("--documents", options.documents,
                  "Lengths of documents, one after the other: a query sees its own one's keys")
      ->type_name("N,N,...");
  CLI::Option* file =
      command
          .add_option("--mask-file", options.file,
                      "File with a Mask in protobuf JSON, or with an array, one per batch row")
          ->type_name("FILE");
  for (const char* flag : kMaskFlags) {
    CLI::Option* option = command.get_option(flag);
    option->group(group);
    if (option != file) file->excludes(option);
  }
}

absl::Status ApplyMaskOptions(const MaskOptions& options, bool alibi, v1::AttentionSpec& spec) {
  if (options.file.has_value()) return ApplyFile(*options.file, spec);
  absl::Status status = CheckNeeds(options, alibi);
  v1::Mask mask;
  mask.set_causal(options.mask == "causal");
  if (status.ok() && options.window.has_value()) status = ApplyWindow(*options.window, mask);
  if (status.ok() && options.documents.has_value())
    status = ApplyDocuments(*options.documents, spec, mask);
  if (!status.ok()) return status;
  if (options.q_offset.has_value()) mask.set_q_offset(*options.q_offset);
  if (options.bottom_right) mask.set_bottom_right(true);
  if (options.sinks.has_value()) mask.set_sinks(*options.sinks);
  if (options.prefix.has_value()) mask.set_prefix(*options.prefix);
  if (mask.ByteSizeLong() > 0) *spec.add_masks() = mask;
  return absl::OkStatus();
}

}  // namespace ringserve
