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

// How many calls were served, and the statistics of the last. Thread safe.
class Tally {
 public:
  // OK where `result` is.
  absl::Status Count(absl::StatusOr<AttendResult> result);
  int64_t calls() const;
  std::optional<v1::Statistics> statistics() const;

 private:
  mutable absl::Mutex mu_;
  int64_t calls_ ABSL_GUARDED_BY(mu_) = 0;
  std::optional<v1::Statistics> statistics_ ABSL_GUARDED_BY(mu_);
};

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

  int64_t calls() const override { return forward_.calls(); }
  int64_t backward_calls() const override { return backward_.calls(); }
  std::optional<v1::Statistics> statistics() const override { return forward_.statistics(); }
  std::optional<v1::Statistics> backward_statistics() const override {
    return backward_.statistics();
  }

 private:
  const std::shared_ptr<Client> client_;
  const ContextParallelOptions options_;
  Tally forward_, backward_;
  std::atomic<bool> warned_ = false;
};

}  // namespace ringserve
