// What the forward and the backward ring do alike: arithmetic that may fail without keeping others
// from their exchanges, posts and bounded waits, and a count of what moved.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <c10/core/Event.h>

#include "absl/status/status.h"
#include "worker/attention/ring.h"
#include "worker/attention/score_terms.h"
#include "worker/comm/communicator.h"

namespace ringserve {

// The batch rows that a tile names: all of them (-1), or one, be it a part of the one entry or an
// entry of its own.
at::Tensor BatchRow(const std::vector<at::Tensor>& tensors, int batch_row);

// Those of these batch rows; one bias may serve all.
ScoreTerms TermsOfBatchRow(const std::vector<at::Tensor>& bias, const at::Tensor& alibi_slopes,
                           int batch_row);

class RingWork {
 public:
  // Arithmetic is done on `device`. All outlive this.
  RingWork(uint64_t job, at::Device device, const RingOptions& options, Communicator& communicator,
           RingProgress& progress, RingStatistics& statistics)
      : job_(job),
        device_(device),
        options_(options),
        communicator_(communicator),
        progress_(progress),
        statistics_(statistics) {}

  // Does `work` unless the job is cancelled or something failed before. What it throws must not
  // keep the others of the ring from their exchanges: it is told at the end.
  template <typename Work>
  void Compute(const Work& work);

  // Was everything done that was to be done so far?
  bool complete() const { return !progress_.cancelled && arithmetic_.ok(); }

  // Starts the transfers of a step. After Wait, what is computed comes after them. The
  // communicator's errors.
  //
  // Where the device computes while this thread goes on, the thread is at most one step ahead: a
  // job that is cancelled has little on its way yet. It waits for its own device first, and only
  // then, for a limited time, for others: a long step is no fault.
  absl::Status Post(uint32_t step, const std::vector<SendOp>& sends,
                    const std::vector<RecvOp>& recvs);
  absl::Status Wait();

  // Waits for all of it: steps and transfers.
  absl::Status Finish();

  // Counts a tile.
  void Done();

  // ABORTED where the job was cancelled, INTERNAL where the arithmetic failed.
  absl::Status Ended() const;

 private:
  static double SecondsSince(Communicator::Clock::time_point begin);

  // Does `work` whatever has become of the job.
  template <typename Work>
  void Always(const Work& work);

  // Waits for the device, but not for its last `ahead` steps.
  void AwaitSteps(size_t ahead);

  // Waits for others as `wait` does, which is given its deadline.
  absl::Status AwaitOthers(
      const std::function<absl::Status(Communicator::Clock::time_point)>& wait);

  const uint64_t job_;
  const at::Device device_;
  const RingOptions& options_;
  Communicator& communicator_;
  RingProgress& progress_;
  RingStatistics& statistics_;
  Communicator::Ticket exchange_ = 0;
  std::deque<c10::Event> steps_;  // that are on their way on the device, each its end
  absl::Status arithmetic_;       // the first failure
  const Communicator::Clock::time_point begin_ = Communicator::Clock::now();
};

template <typename Work>
void RingWork::Compute(const Work& work) {
  if (complete()) Always(work);
}

template <typename Work>
void RingWork::Always(const Work& work) {
  const Communicator::Clock::time_point begin = Communicator::Clock::now();
  progress_.computing = true;
  try {
    work();
  } catch (const std::exception& error) {
    if (arithmetic_.ok())
      arithmetic_ = absl::InternalError(std::string("attention failed: ") + error.what());
  }
  progress_.computing = false;
  statistics_.compute_seconds += SecondsSince(begin);
}

// Runs `ring` in inference mode, counts the bytes it moved, and ends LibTorch's exceptions: one
// that is thrown outside of Compute leaves exchanges undone, so that the communicator ends with it.
absl::Status RunCounted(Communicator& communicator, RingStatistics& statistics,
                        const std::function<absl::Status()>& ring);

}  // namespace ringserve
