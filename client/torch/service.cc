#include "client/torch/service.h"

#include <string>
#include <utility>

#include <c10/util/Exception.h>

namespace ringserve {
namespace {

absl::Status Check(const Client* client, const ContextParallelOptions& options) {
  if (client == nullptr) return absl::InvalidArgumentError("client is null");
  if (options.attention.return_lse() || options.attention.lse_without_sinks()) {
    return absl::InvalidArgumentError(
        "attention.return_lse and attention.lse_without_sinks are the scope's own: must be false");
  }
  if (options.local_fallback && !options.masks.empty()) {
    return absl::InvalidArgumentError(
        "local_fallback is set beside masks: what runs locally would not have them");
  }
  return absl::OkStatus();
}

}  // namespace

ContextParallelError::ContextParallelError(absl::Status status)
    : std::runtime_error("ringserve: " + status.ToString()), status_(std::move(status)) {}

absl::Status Tally::Count(absl::StatusOr<AttendResult> result) {
  if (!result.ok()) return result.status();
  absl::MutexLock lock(&mu_);
  ++calls_;
  statistics_ = std::move(result->statistics);
  return absl::OkStatus();
}

int64_t Tally::calls() const {
  absl::MutexLock lock(&mu_);
  return calls_;
}

std::optional<v1::Statistics> Tally::statistics() const {
  absl::MutexLock lock(&mu_);
  return statistics_;
}

AttentionService::AttentionService(std::shared_ptr<Client> client, ContextParallelOptions options)
    : client_(std::move(client)), options_(std::move(options)) {
  const absl::Status status = Check(client_.get(), options_);
  if (!status.ok()) throw ContextParallelError(status);
}

absl::Status AttentionService::Attend(const v1::AttendHeader& header, const AttendInputs& inputs,
                                      const AttendOutputs& outputs) {
  return forward_.Count(client_->Attend(header, inputs, outputs, options_.call));
}

absl::Status AttentionService::AttendBackward(const v1::AttendHeader& header,
                                              const BackwardInputs& inputs,
                                              const BackwardOutputs& outputs) {
  return backward_.Count(client_->AttendBackward(header, inputs, outputs, options_.call));
}

bool AttentionService::FallsBack(const absl::Status& why) {
  if (!options_.local_fallback || why.code() != absl::StatusCode::kUnimplemented) return false;
  if (!warned_.exchange(true))
    TORCH_WARN("ringserve: an attention call runs locally: ", std::string(why.message()));
  return true;
}

}  // namespace ringserve
