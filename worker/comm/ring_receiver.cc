#include "worker/comm/ring_receiver.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/status.h"
#include "worker/comm/frame.h"

namespace ringserve {

void RingReceiver::Post(Transfers::Ticket ticket, const TransferTag& tag, RecvOp op) {
  Incoming incoming{.ticket = ticket, .tag = tag, .parts = std::move(op.parts)};
  for (const std::span<std::byte>& part : incoming.parts) incoming.size += part.size();
  absl::Status status;
  {
    absl::MutexLock lock(&mu_);
    if (ended_) return;
    posted_.push_back(std::move(incoming));
    if (holding_) status = TakeLocked();
  }
  if (!status.ok()) transfers_->End(status);
}

absl::Status RingReceiver::Attach(grpc::ServerReadReactor<grpc::ByteBuffer>* call) {
  absl::MutexLock lock(&mu_);
  if (ended_) return absl::UnavailableError("the epoch has ended here");
  if (attached_) return absl::InvalidArgumentError(absl::StrCat("a second call from ", name_));
  attached_ = true;
  call_ = call;
  call_->StartRead(&message_);
  return absl::OkStatus();
}

void RingReceiver::OnRead(bool ok) {
  if (!ok) {
    OnBroken();
    return;
  }
  absl::Status status;
  {
    absl::MutexLock lock(&mu_);
    if (call_ == nullptr) return;
    holding_ = true;
    status = TakeLocked();
  }
  if (!status.ok()) transfers_->End(status);
}

void RingReceiver::OnBroken() {
  const absl::Status lost = absl::UnavailableError(absl::StrCat("lost ", name_));
  {
    absl::MutexLock lock(&mu_);
    if (call_ == nullptr) return;  // finished by this side
    FinishLocked(lost);
  }
  transfers_->Lose(peer_, lost);
}

absl::Status RingReceiver::TakeLocked() {
  if (posted_.empty() || !verdict_.ok()) return absl::OkStatus();
  Incoming& incoming = posted_.front();
  absl::Status wrong;
  {
    FrameReader frame(message_);
    const absl::StatusOr<FrameHeader> header = frame.ReadHeader();
    if (!header.ok()) {
      wrong = header.status();
    } else if (header->tag != incoming.tag || header->size != incoming.size ||
               header->offset != incoming.received) {
      wrong = absl::InvalidArgumentError(absl::StrCat(
          "job ", header->tag.job, " step ", header->tag.step, ": byte ", header->offset, " of ",
          header->size, ", but the receive is for job ", incoming.tag.job, " step ",
          incoming.tag.step, ": byte ", incoming.received, " of ", incoming.size));
    } else if (!Copy(frame, header->bytes, incoming)) {
      wrong = absl::InvalidArgumentError("a frame cannot be read to its end");
    } else {
      transfers_->Received(peer_, header->bytes);
    }
  }
  if (!wrong.ok()) {
    // Told to the peer by End, when this side has ended: else the peer's end might be the reason.
    verdict_ = wrong;
    return absl::InternalError(absl::StrCat(name_, " sent ", std::string(wrong.message())));
  }
  if (incoming.received == incoming.size) {
    transfers_->ReceiveComplete(incoming.ticket, peer_);
    posted_.pop_front();
  }
  holding_ = false;
  message_.Clear();
  call_->StartRead(&message_);
  return absl::OkStatus();
}

bool RingReceiver::Copy(FrameReader& frame, uint64_t bytes, Incoming& into) {
  while (bytes > 0) {
    const std::span<std::byte> room = into.parts[into.part].subspan(into.part_used);
    const uint64_t taken = std::min<uint64_t>(bytes, room.size());
    if (!frame.Read(room.first(taken))) return false;
    bytes -= taken;
    into.received += taken;
    into.part_used += taken;
    if (taken == room.size()) {
      ++into.part;
      into.part_used = 0;
    }
  }
  return true;
}

void RingReceiver::FinishLocked(const absl::Status& status) {
  holding_ = false;
  if (call_ != nullptr) std::exchange(call_, nullptr)->Finish(ToGrpc(status));
}

void RingReceiver::End(const absl::Status& reason) {
  absl::MutexLock lock(&mu_);
  ended_ = true;
  posted_.clear();
  FinishLocked(verdict_.ok() ? absl::UnavailableError(
                                   absl::StrCat("the epoch has ended: ", reason.ToString()))
                             : verdict_);
}

}  // namespace ringserve
