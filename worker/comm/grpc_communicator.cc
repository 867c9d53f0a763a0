#include "worker/comm/grpc_communicator.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "worker/comm/member_names.h"
#include "worker/comm/post_rules.h"

namespace ringserve {

std::shared_ptr<GrpcCommunicator> GrpcCommunicator::Make(
    const v1::Epoch& epoch, const std::shared_ptr<grpc::ChannelCredentials>& credentials,
    const std::shared_ptr<Errands>& errands) {
  auto made =
      std::shared_ptr<GrpcCommunicator>(new GrpcCommunicator(epoch.index(), MemberNames(epoch)));
  made->transfers_ = std::make_shared<Transfers>(epoch.members_size(),
                                                 [self = std::weak_ptr<GrpcCommunicator>(made)] {
                                                   if (const auto communicator = self.lock())
                                                     communicator->EndPeers();
                                                 });
  for (int member = 0; member < epoch.members_size(); ++member) {
    Peer& peer = made->peers_.emplace_back();
    if (member == epoch.index()) continue;
    peer.sender = std::make_shared<RingSender>(RingRoute{.epoch = epoch.id(),
                                                         .from = epoch.index(),
                                                         .to = member,
                                                         .address = epoch.members(member).address(),
                                                         .name = made->names_[member]},
                                               credentials, made->transfers_, errands);
    peer.receiver = std::make_shared<RingReceiver>(made->transfers_, member, made->names_[member]);
  }
  return made;
}

GrpcCommunicator::~GrpcCommunicator() {
  transfers_->End(absl::CancelledError("the communicator is destroyed"));
  EndPeers();  // nobody can lock the weak pointer any more
}

absl::StatusOr<Communicator::Ticket> GrpcCommunicator::Post(const TransferTag& tag,
                                                            std::span<const SendOp> sends,
                                                            std::span<const RecvOp> recvs) {
  const absl::Status wrong = CheckPost(self_, static_cast<int>(peers_.size()), sends, recvs);
  if (!wrong.ok()) return Ended(wrong);
  std::vector<int> named;
  for (const SendOp& send : sends) named.push_back(send.peer);
  for (const RecvOp& recv : recvs) named.push_back(recv.peer);
  const absl::StatusOr<Ticket> ticket = transfers_->Begin(named);
  if (!ticket.ok()) return Ended(ticket.status());
  for (const int member : named) peers_[member].sender->Open();
  for (const RecvOp& recv : recvs) peers_[recv.peer].receiver->Post(*ticket, tag, recv);
  for (const SendOp& send : sends) peers_[send.peer].sender->Post(*ticket, tag, send);
  return ticket;
}

absl::Status GrpcCommunicator::Then(Ticket ticket, Clock::time_point deadline) {
  return Settle(transfers_->Await(ticket, deadline));
}

absl::Status GrpcCommunicator::Finish(Clock::time_point deadline) {
  return Settle(transfers_->AwaitAll(deadline));
}

absl::Status GrpcCommunicator::Settle(absl::Status waited) {
  if (waited.ok()) return waited;
  if (transfers_->status().ok()) {
    std::vector<std::string> names;
    for (const int member : transfers_->PendingPeers()) names.push_back(names_[member]);
    waited = absl::DeadlineExceededError(
        absl::StrCat("the exchange is not complete with ", absl::StrJoin(names, ", ")));
  }
  return Ended(std::move(waited));
}

absl::Status GrpcCommunicator::Ended(absl::Status reason) {
  transfers_->End(std::move(reason));
  EndPeers();  // whoever brought the end may not be through yet
  return transfers_->status();
}

void GrpcCommunicator::Abort(absl::Status reason) { transfers_->End(std::move(reason)); }

void GrpcCommunicator::EndPeers() {
  const absl::Status reason = transfers_->status();
  for (const Peer& peer : peers_) {
    if (peer.sender != nullptr) peer.sender->End();
    if (peer.receiver != nullptr) peer.receiver->End(reason);
  }
}

std::vector<PeerCounters> GrpcCommunicator::counters() const { return transfers_->counters(); }

absl::StatusOr<std::shared_ptr<RingReceiver>> GrpcCommunicator::ReceiverFor(int from,
                                                                            int to) const {
  if (to != self_ || from < 0 || from >= static_cast<int>(peers_.size()) || from == self_) {
    return absl::InvalidArgumentError(absl::StrCat("a call from member ", from, " to member ", to,
                                                   " reaches member ", self_, " of ",
                                                   peers_.size()));
  }
  return peers_[from].receiver;
}

}  // namespace ringserve
