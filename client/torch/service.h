// Where served calls go: the client, the options and the counters of one scope, or of one Enable.
#pragma once

#include <atomic>
#include <memory>
#include <optional>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "ringserve/torch.h"

namespace ringserve {

// Thread safe.
class AttentionService : public ServedCalls {
 public:
  // Throws ContextParallelError, INVALID_ARGUMENT, where the options contradict each other.
  AttentionService(std::shared_ptr<Client> client, ContextParallelOptions options);

  const ContextParallelOptions& options() const { return options_; }

  // Block; statuses as Client's.
  absl::Status Attend(const v1::AttendHeader& header, const AttendInputs& inputs,
                      const AttendOutputs& outputs);
  absl::Status AttendBackward(const v1::AttendHeader& header, const BackwardInputs& inputs,
                              const BackwardOutputs& outputs);

  // Whether a call that `why` keeps from being served runs locally; warns the first time.
  bool FallsBack(const absl::Status& why);

  int64_t calls() const override { return calls_; }
  int64_t backward_calls() const override { return backward_calls_; }
  std::optional<v1::Statistics> statistics() const override;

 private:
  absl::Status Count(absl::StatusOr<AttendResult> result, std::atomic<int64_t>& calls);

  const std::shared_ptr<Client> client_;
  const ContextParallelOptions options_;
  std::atomic<int64_t> calls_ = 0, backward_calls_ = 0;
  std::atomic<bool> warned_ = false;
  mutable absl::Mutex mu_;
  std::optional<v1::Statistics> statistics_ ABSL_GUARDED_BY(mu_);
};

}  // namespace ringserve
