#include "worker/attention/ring_work.h"

#include <chrono>
#include <utility>

#include <c10/core/InferenceMode.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include "absl/strings/str_cat.h"

namespace ringserve {
namespace {

constexpr size_t kStepsAhead = 1;

std::pair<uint64_t, uint64_t> BytesMoved(const Communicator& communicator) {
  std::pair<uint64_t, uint64_t> moved;
  for (const PeerCounters& peer : communicator.counters()) {
    moved.first += peer.bytes_sent;
    moved.second += peer.bytes_received;
  }
  return moved;
}

}  // namespace

at::Tensor BatchRow(const std::vector<at::Tensor>& tensors, int batch_row) {
  if (batch_row < 0) return tensors[0];
  return tensors.size() == 1 ? tensors[0].narrow(0, batch_row, 1) : tensors[batch_row];
}

ScoreTerms TermsOfBatchRow(const std::vector<at::Tensor>& bias, const at::Tensor& alibi_slopes,
                           int batch_row) {
  ScoreTerms terms = {.alibi_slopes = alibi_slopes};
  if (bias.empty()) return terms;
  const bool one = bias.size() == 1 && bias[0].size(0) == 1;
  terms.bias = BatchRow(bias, one ? -1 : batch_row);
  return terms;
}

double RingWork::SecondsSince(Communicator::Clock::time_point begin) {
  return std::chrono::duration<double>(Communicator::Clock::now() - begin).count();
}

absl::Status RingWork::Post(uint32_t step, const std::vector<SendOp>& sends,
                            const std::vector<RecvOp>& recvs) {
  const absl::StatusOr<Communicator::Ticket> exchange =
      communicator_.Post({.job = job_, .step = step}, sends, recvs);
  if (!exchange.ok()) return exchange.status();
  exchange_ = *exchange;
  return absl::OkStatus();
}

absl::Status RingWork::Wait() {
  if (!device_.is_cpu()) {
    Always([&] {
      const c10::impl::VirtualGuardImpl device(device_.type());
      steps_.emplace_back(device_.type()).record(device.getStream(device_));
    });
    AwaitSteps(kStepsAhead);
  }
  return AwaitOthers([&](auto deadline) { return communicator_.Then(exchange_, deadline); });
}

// The last step is computed behind the transfers of the one before.
absl::Status RingWork::Finish() {
  AwaitSteps(1);
  const absl::Status status =
      AwaitOthers([&](auto deadline) { return communicator_.Finish(deadline); });
  if (status.ok()) AwaitSteps(0);
  return status;
}

void RingWork::AwaitSteps(size_t ahead) {
  if (steps_.size() <= ahead) return;
  Always([&] {
    for (; steps_.size() > ahead; steps_.pop_front()) steps_.front().synchronize();
  });
}

absl::Status RingWork::AwaitOthers(
    const std::function<absl::Status(Communicator::Clock::time_point)>& wait) {
  const Communicator::Clock::time_point begin = Communicator::Clock::now();
  const absl::Status status = wait(begin + (begin - begin_) + options_.exchange_deadline);
  statistics_.exchange_wait_seconds += SecondsSince(begin);
  return status;
}

void RingWork::Done() {
  ++progress_.tiles_done;
  ++statistics_.tiles;
}

absl::Status RingWork::Ended() const {
  return progress_.cancelled ? absl::AbortedError("cancelled") : arithmetic_;
}

absl::Status RunCounted(Communicator& communicator, RingStatistics& statistics,
                        const std::function<absl::Status()>& ring) {
  const c10::InferenceMode inference;
  const auto [sent_before, received_before] = BytesMoved(communicator);
  absl::Status status;
  try {
    status = ring();
  } catch (const std::exception& error) {
    status = absl::InternalError(absl::StrCat("the ring failed: ", error.what()));
    communicator.Abort(status);
  }
  const auto [sent, received] = BytesMoved(communicator);
  statistics.bytes_sent = sent - sent_before;
  statistics.bytes_received = received - received_before;
  return status;
}

}  // namespace ringserve
