// The communicator of a job with one rank: there is nobody to talk to. Works in any epoch and
// outlives it.
#pragma once

#include "worker/comm/communicator.h"

namespace ringserve {

class SoloCommunicator : public Communicator {
 public:
  // INTERNAL: something is to be sent or received.
  absl::StatusOr<Ticket> Post(const TransferTag& tag, std::span<const SendOp> sends,
                              std::span<const RecvOp> recvs) override {
    if (!sends.empty() || !recvs.empty()) {
      return absl::InternalError("a job of one rank has a transfer");
    }
    return 0;
  }
  absl::Status Then(Ticket ticket, Clock::time_point deadline) override { return absl::OkStatus(); }
  absl::Status Finish(Clock::time_point deadline) override { return absl::OkStatus(); }
  void Abort(absl::Status reason) override {}
  std::vector<PeerCounters> counters() const override { return {}; }
};

}  // namespace ringserve
