#include "worker/join_stream.h"

#include <utility>

#include "proto/status.h"

namespace ringserve {

std::shared_ptr<JoinStream> JoinStream::Open(std::unique_ptr<v1::Cluster::Stub> stub,
                                             const v1::WorkerMessage& hello, Listener listener) {
  auto stream = std::shared_ptr<JoinStream>(new JoinStream(std::move(stub), std::move(listener)));
  stream->self_ = stream;
  stream->stub_->async()->Join(&stream->context_, stream.get());
  stream->AddHold();  // for Send, which no reaction of gRPC calls
  stream->Send(hello);
  stream->StartRead(&stream->incoming_);
  stream->StartCall();
  return stream;
}

void JoinStream::Send(v1::WorkerMessage message) {
  absl::MutexLock lock(&mu_);
  if (over_) return;
  outbox_.push_back(std::move(message));
  WriteLocked();
}

void JoinStream::OnReadDone(bool ok) {
  if (ok) {
    listener_.on_message(std::exchange(incoming_, {}));
    StartRead(&incoming_);
    return;
  }
  // Nothing comes any more: the call is at its end, and so is what it has to send.
  absl::MutexLock lock(&mu_);
  over_ = true;
  RemoveHold();
}

void JoinStream::OnWriteDone(bool ok) {
  absl::MutexLock lock(&mu_);
  writing_ = false;
  outbox_.pop_front();
  if (!ok) over_ = true;  // OnReadDone says so, too
  WriteLocked();
}

void JoinStream::OnDone(const grpc::Status& status) {
  // A channel must not end on one of gRPC's threads, which would wait for itself: whoever hears of
  // the end still holds the stream, and is the last to let go.
  const std::function<void(const absl::Status&)> on_end = listener_.on_end;
  self_.reset();
  on_end(FromGrpc(status));
}

void JoinStream::WriteLocked() {
  if (over_ || writing_ || outbox_.empty()) return;
  writing_ = true;
  StartWrite(&outbox_.front());
}

}  // namespace ringserve
