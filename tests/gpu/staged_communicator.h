// A communicator between GPUs for callers whose bytes lie in the host's memory, as those of the
// conformance suite do: what is sent is copied to the device when it is posted, and what came is
// copied back when its ticket has been waited for. Parts stay parts.
#pragma once

#include <deque>
#include <memory>
#include <utility>
#include <vector>

#include <ATen/ATen.h>

#include "worker/comm/communicator.h"

namespace ringserve::test {

class StagedCommunicator : public Communicator {
 public:
  // Takes memory of `device`, on the present stream of the thread that posts.
  StagedCommunicator(std::shared_ptr<Communicator> on_device, int device)
      : device_(at::kCUDA, static_cast<c10::DeviceIndex>(device)),
        on_device_(std::move(on_device)) {}

  absl::StatusOr<Ticket> Post(const TransferTag& tag, std::span<const SendOp> sends,
                              std::span<const RecvOp> recvs) override;
  absl::Status Then(Ticket ticket, Clock::time_point deadline) override;
  absl::Status Finish(Clock::time_point deadline) override;
  void Abort(absl::Status reason) override { on_device_->Abort(std::move(reason)); }
  std::vector<PeerCounters> counters() const override { return on_device_->counters(); }

 private:
  struct Posted {
    Ticket ticket = 0;
    std::vector<at::Tensor> sent;                                       // kept until it is over
    std::vector<std::pair<std::span<std::byte>, at::Tensor>> received;  // by part
  };

  void CopyBack(Ticket ticket);

  const at::Device device_;
  std::deque<Posted> posted_;
  const std::shared_ptr<Communicator> on_device_;  // ends before what it reads and writes
};

}  // namespace ringserve::test
