#include "server/rank_link.h"

#include <utility>

#include <grpcpp/generic/generic_stub.h>

#include "proto/protocol.h"
#include "proto/status.h"

namespace ringserve {
namespace {

constexpr char kRunMethod[] = "/ringserve.v1.Shard/Run";

}  // namespace

std::shared_ptr<RankLink> RankLink::Open(const std::shared_ptr<grpc::Channel>& channel, int rank,
                                         std::shared_ptr<RankListener> listener) {
  std::shared_ptr<RankLink> link(new RankLink(rank, std::move(listener)));
  link->self_ = link;
  link->context_.set_wait_for_ready(false);
  grpc::GenericStub(channel).PrepareBidiStreamingCall(&link->context_, kRunMethod,
                                                      grpc::StubOptions(), link.get());
  link->AddHold();  // writes and reads are started from outside of reactions
  link->StartRead(&link->incoming_);
  link->StartCall();
  return link;
}

void RankLink::Write(grpc::ByteBuffer* message) {
  absl::MutexLock lock(&mu_);
  if (over_) return;
  outgoing_.Swap(message);
  StartWrite(&outgoing_);
}

void RankLink::Read() {
  absl::MutexLock lock(&mu_);
  if (!over_) StartRead(&incoming_);
}

void RankLink::OnWriteDone(bool) {
  outgoing_.Clear();
  listener_->OnRankWritten(rank_);
}

void RankLink::OnReadDone(bool ok) {
  if (ok) {
    grpc::ByteBuffer message;
    message.Swap(&incoming_);
    listener_->OnRankMessage(rank_, message);
    return;
  }
  {
    absl::MutexLock lock(&mu_);
    over_ = true;
  }
  RemoveHold();
}

void RankLink::OnDone(const grpc::Status& status) {
  const std::shared_ptr<RankLink> self = std::move(self_);
  const bool released = context_.GetServerTrailingMetadata().count(kReleasedKey) > 0;
  listener_->OnRankEnded(rank_, FromGrpc(status, context_), released);
}

}  // namespace ringserve
