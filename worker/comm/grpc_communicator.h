// The communicator of CPU workers: one Ring.Pass call from each member to each that it exchanges
// with, on the listeners that they serve anyway. Here is who does what; the bytes are moved by
// RingSender and RingReceiver.
//
// A peer that dies is seen when its calls break, and ends the communicator if anything is pending
// with it, now or later. A peer that stops is not seen: the deadline of Then finds it.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include <grpcpp/security/credentials.h>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "ringserve/v1/cluster.pb.h"
#include "worker/comm/communicator.h"
#include "worker/comm/errands.h"
#include "worker/comm/ring_receiver.h"
#include "worker/comm/ring_sender.h"
#include "worker/comm/transfers.h"

namespace ringserve {

class GrpcCommunicator : public Communicator {
 public:
  // `epoch` has members, and one with its index. Waits for nobody. `errands` is not stopped before
  // the communicator has ended.
  static std::shared_ptr<GrpcCommunicator> Make(
      const v1::Epoch& epoch, const std::shared_ptr<grpc::ChannelCredentials>& credentials,
      const std::shared_ptr<Errands>& errands);

  ~GrpcCommunicator() override;

  absl::StatusOr<Ticket> Post(const TransferTag& tag, std::span<const SendOp> sends,
                              std::span<const RecvOp> recvs) override;
  absl::Status Then(Ticket ticket, Clock::time_point deadline) override;
  absl::Status Finish(Clock::time_point deadline) override;
  void Abort(absl::Status reason) override;
  std::vector<PeerCounters> counters() const override;

  // Who takes what member `from` sends to member `to`. INVALID_ARGUMENT: `to` is not this one, or
  // `from` no other.
  absl::StatusOr<std::shared_ptr<RingReceiver>> ReceiverFor(int from, int to) const;

 private:
  struct Peer {  // null for this member itself
    std::shared_ptr<RingSender> sender;
    std::shared_ptr<RingReceiver> receiver;
  };

  GrpcCommunicator(int self, std::vector<std::string> names)
      : self_(self), names_(std::move(names)) {}

  absl::Status Settle(absl::Status waited);
  absl::Status Ended(absl::Status reason);
  void EndPeers();

  const int self_;
  const std::vector<std::string> names_;  // by member
  std::shared_ptr<Transfers> transfers_;
  std::vector<Peer> peers_;  // by member
};

}  // namespace ringserve
