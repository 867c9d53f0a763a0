#include "client/ringctl/request_options.h"

#include <cmath>
#include <limits>

#include <CLI/CLI.hpp>

#include "absl/strings/str_cat.h"
#include "client/ringctl/mask_file.h"
#include "client/ringctl/names.h"
#include "proto/protocol.h"

namespace ringserve {
namespace {

constexpr int64_t kMaxOffset = int64_t{1} << 40;

std::string CheckFinite(const std::string& text) {
  double value = 0;
  if (!CLI::detail::lexical_cast(text, value) || !std::isfinite(value))
    return absl::StrCat(text, " is no finite number");
  return "";
}

absl::Status ApplyMask(const RequestOptions& options, v1::AttentionSpec& spec) {
  if (options.mask == "causal") {
    v1::Mask& mask = *spec.add_masks();
    mask.set_causal(true);
    if (options.q_offset.has_value()) mask.set_q_offset(*options.q_offset);
    if (options.bottom_right) mask.set_bottom_right(true);
    return absl::OkStatus();
  }
  // An alignment shifts a diagonal; without one it would do nothing.
  const char* where = options.mask_file.empty() ? "it needs --mask causal"
                                                : "write it into the masks of --mask-file";
  if (options.q_offset.has_value()) {
    return absl::InvalidArgumentError(
        absl::StrCat("--q-offset is ", *options.q_offset, ": ", where));
  }
  if (options.bottom_right)
    return absl::InvalidArgumentError(absl::StrCat("--bottom-right is given: ", where));
  if (options.mask_file.empty()) return absl::OkStatus();

  absl::StatusOr<MaskFile> file = ReadMaskFile(options.mask_file);
  if (!file.ok())
    return absl::InvalidArgumentError(absl::StrCat("--mask-file ", file.status().message()));
  if (file->per_row && file->masks.size() != spec.batch()) {
    return absl::InvalidArgumentError(
        absl::StrCat("--mask-file ", options.mask_file, " is an array of ", file->masks.size(),
                     " masks: must have one per batch row (", spec.batch(), ")"));
  }
  *spec.mutable_masks() = std::move(file->masks);
  return absl::OkStatus();
}

// What balancers are told beyond their name.
void AddCuttingOptions(CLI::App& command, RequestOptions& options, const char* group) {
  command
      .add_option("--ptrr-block", options.ptrr_block,
                  "Rows of a block of --balancer ptrr; 0: the planner chooses")
      ->check(CLI::Range(int64_t{0}, int64_t{std::numeric_limits<int32_t>::max()}))
      ->capture_default_str()
      ->group(group);
  command
      .add_flag("--ptrr-count-blocks", options.ptrr_count_blocks,
                "--balancer ptrr counts blocks of keys, as PyTorch does, instead of visible pairs")
      ->group(group);
  command
      .add_option("--worker-weights", options.worker_weights,
                  "What each worker takes, in proportion: one number for each of --workers")
      ->delimiter(',')
      ->check(CLI::Validator(CheckFinite, "FINITE"))
      ->type_name("X,X,...")
      ->group(group);
}

}  // namespace

void AddRequestOptions(CLI::App& command, RequestOptions& options) {
  constexpr char kGroup[] = "Request";
  CLI::Option* mask =
      command.add_option("--mask", options.mask, "Which keys a query sees: all, or none after it")
          ->check(CLI::IsMember({"full", "causal"}))
          ->capture_default_str()
          ->group(kGroup);
  command
      .add_option("--mask-file", options.mask_file,
                  "File with a Mask in protobuf JSON, or with an array of them, one per batch row")
      ->type_name("FILE")
      ->excludes(mask)
      ->group(kGroup);
  CLI::Option* q_offset =
      command
          .add_option("--q-offset", options.q_offset,
                      "With --mask causal: the key position of query 0 (default 0)")
          ->check(CLI::Range(-kMaxOffset, kMaxOffset))
          ->group(kGroup);
  command
      .add_flag("--bottom-right", options.bottom_right,
                "With --mask causal: the last query sits on the last key")
      ->excludes(q_offset)
      ->group(kGroup);
  command.add_option("--scale", options.scale, "Factor of the scores (default 1 / sqrt(head dim))")
      ->check(CLI::Validator(CheckFinite, "FINITE"))
      ->group(kGroup);
  command.add_option("--balancer", options.balancer, "How the sequence is cut over the workers")
      ->check(CLI::IsMember(BalancerNames()))
      ->capture_default_str()
      ->group(kGroup);
  command.add_option("--rotate", options.rotate, "How keys and values meet the queries")
      ->check(CLI::IsMember(RotateMethodNames()))
      ->capture_default_str()
      ->group(kGroup);
  command
      .add_option("--workers", options.workers, "Exactly so many workers; 0: the planner chooses")
      ->check(CLI::Range(0, kMaxRanks))
      ->capture_default_str()
      ->group(kGroup);
  AddCuttingOptions(command, options, kGroup);
}

absl::Status ApplyRequestOptions(const RequestOptions& options, v1::AttentionSpec& spec,
                                 v1::AttentionOptions& header_options) {
  const absl::Status status = ApplyMask(options, spec);
  if (!status.ok()) return status;
  if (options.scale.has_value()) spec.set_scale(*options.scale);
  header_options.set_balancer(*BalancerNamed(options.balancer));
  header_options.set_rotate(*RotateMethodNamed(options.rotate));
  header_options.set_workers(options.workers);
  header_options.set_ptrr_block(options.ptrr_block);
  header_options.set_ptrr_count_blocks(options.ptrr_count_blocks);
  for (const double weight : options.worker_weights) header_options.add_worker_weights(weight);
  return absl::OkStatus();
}

}  // namespace ringserve
