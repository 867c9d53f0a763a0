#include "client/ringctl/request_options.h"

#include <cmath>

#include <CLI/CLI.hpp>

#include "absl/strings/str_cat.h"
#include "client/ringctl/names.h"
#include "proto/protocol.h"
#include "proto/validate.h"

namespace ringserve {
namespace {

std::string CheckFinite(const std::string& text) {
  double value = 0;
  if (!CLI::detail::lexical_cast(text, value) || !std::isfinite(value))
    return absl::StrCat(text, " is no finite number");
  return "";
}

// What balancers are told beyond their name.
void AddCuttingOptions(CLI::App& command, RequestOptions& options, const char* group) {
  command
      .add_option("--ptrr-block", options.ptrr_block,
                  "Rows of a block of --balancer ptrr; 0: the planner chooses")
      ->check(CLI::Range(int64_t{0}, kMaxDim))
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
  AddMaskOptions(command, options.mask, kGroup);
  AddExtrasOptions(command, options.extras, kGroup);
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
  absl::Status status = ApplyMaskOptions(options.mask, options.extras.alibi.has_value(), spec);
  if (!status.ok()) return status;
  if (options.scale.has_value()) spec.set_scale(*options.scale);
  header_options.set_balancer(*BalancerNamed(options.balancer));
  header_options.set_rotate(*RotateMethodNamed(options.rotate));
  header_options.set_workers(options.workers);
  header_options.set_lse_without_sinks(options.extras.lse_without_sinks);
  header_options.set_ptrr_block(options.ptrr_block);
  header_options.set_ptrr_count_blocks(options.ptrr_count_blocks);
  for (const double weight : options.worker_weights) header_options.add_worker_weights(weight);
  return absl::OkStatus();
}

}  // namespace ringserve
