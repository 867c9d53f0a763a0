#include "tests/gpu/staged_communicator.h"

namespace ringserve::test {
namespace {

at::Tensor OnHost(const std::byte* bytes, size_t size) {
  // Is only read where the bytes are const.
  return at::from_blob(const_cast<std::byte*>(bytes), {static_cast<int64_t>(size)}, at::kByte);
}

std::byte* BytesOf(const at::Tensor& tensor) {
  return static_cast<std::byte*>(tensor.mutable_data_ptr());
}

}  // namespace

absl::StatusOr<Communicator::Ticket> StagedCommunicator::Post(const TransferTag& tag,
                                                              std::span<const SendOp> sends,
                                                              std::span<const RecvOp> recvs) {
  Posted posted;
  std::vector<SendOp> device_sends;
  for (const SendOp& send : sends) {
    SendOp& op =
        device_sends.emplace_back(SendOp{.peer = send.peer, .keep_alive = send.keep_alive});
    for (const std::span<const std::byte> part : send.parts) {
      const at::Tensor copy = OnHost(part.data(), part.size()).to(device_);
      posted.sent.push_back(copy);
      op.parts.emplace_back(BytesOf(copy), part.size());
    }
  }
  std::vector<RecvOp> device_recvs;
  for (const RecvOp& recv : recvs) {
    RecvOp& op = device_recvs.emplace_back(RecvOp{.peer = recv.peer});
    for (const std::span<std::byte> part : recv.parts) {
      const at::Tensor into =
          at::empty({static_cast<int64_t>(part.size())}, at::device(device_).dtype(at::kByte));
      posted.received.emplace_back(part, into);
      op.parts.emplace_back(BytesOf(into), part.size());
    }
  }
  const absl::StatusOr<Ticket> ticket = on_device_->Post(tag, device_sends, device_recvs);
  posted.ticket = ticket.ok() ? *ticket : 0;
  // Also after an error: its bytes may be read until the communicator has ended.
  posted_.push_back(std::move(posted));
  return ticket;
}

void StagedCommunicator::CopyBack(Ticket ticket) {
  for (; !posted_.empty() && posted_.front().ticket <= ticket; posted_.pop_front()) {
    for (const auto& [part, from] : posted_.front().received) {
      if (!part.empty()) OnHost(part.data(), part.size()).copy_(from);
    }
  }
}

absl::Status StagedCommunicator::Then(Ticket ticket, Clock::time_point deadline) {
  absl::Status status = on_device_->Then(ticket, deadline);
  if (status.ok()) CopyBack(ticket);
  return status;
}

absl::Status StagedCommunicator::Finish(Clock::time_point deadline) {
  absl::Status status = on_device_->Finish(deadline);
  if (status.ok() && !posted_.empty()) CopyBack(posted_.back().ticket);
  return status;
}

}  // namespace ringserve::test
