#include "client/attend_call.h"

#include <algorithm>
#include <string>
#include <utility>

#include <grpcpp/generic/generic_stub.h>

#include "absl/time/time.h"
#include "proto/protocol.h"
#include "proto/status.h"
#include "proto/wire.h"

namespace ringserve {
namespace {

constexpr char kAttendMethod[] = "/ringserve.v1.Attention/Attend";
constexpr char kAttendBackwardMethod[] = "/ringserve.v1.Attention/AttendBackward";
// By then the next one may listen.
constexpr std::chrono::milliseconds kRetryAfterShutdown{500};

}  // namespace

AttendCall::AttendCall(const v1::AttendHeader& header, const CallSpans& spans, bool backward,
                       std::shared_ptr<Loan> loan)
    : backward_(backward),
      loan_(std::move(loan)),
      uploads_(spans.inputs),
      downloads_(spans.outputs) {
  v1::AttendRequest first;
  *first.mutable_header() = header;
  outgoing_ = EncodeProto(first);
  for (const CallSpans::Output& download : downloads_) {
    coverage_.Expect(download.tensor, download.bytes.size());
  }
}

void AttendCall::Start(const std::shared_ptr<grpc::Channel>& channel,
                       std::chrono::system_clock::time_point deadline) {
  context_.set_deadline(deadline);
  context_.set_wait_for_ready(false);
  grpc::GenericStub(channel).PrepareBidiStreamingCall(
      &context_, backward_ ? kAttendBackwardMethod : kAttendMethod, grpc::StubOptions(), this);
  StartWrite(&outgoing_);
  StartRead(&incoming_);
  StartCall();
}

void AttendCall::OnWriteDone(bool ok) {
  if (!ok) return;  // the call has ended: OnDone says why
  WriteNext();
}

// Messages are filled to kChunkBytes across tensors: a small request is one message.
void AttendCall::WriteNext() {
  std::vector<DataChunk> chunks;
  uint64_t room = kChunkBytes;
  while (room > 0 && next_upload_ < uploads_.size()) {
    const CallSpans::Input& upload = uploads_[next_upload_];
    const uint64_t size = std::min<uint64_t>(room, upload.bytes.size() - sent_);
    chunks.push_back(loan_->Lend(upload.tensor, sent_, upload.bytes.data() + sent_, size));
    sent_ += size;
    room -= size;
    if (sent_ == upload.bytes.size()) {
      ++next_upload_;
      sent_ = 0;
    }
  }
  if (chunks.empty()) return;
  bytes_moved_ += kChunkBytes - room;
  outgoing_ = EncodeChunks(chunks);
  if (next_upload_ == uploads_.size()) {
    StartWriteLast(&outgoing_, grpc::WriteOptions());
  } else {
    StartWrite(&outgoing_);
  }
}

void AttendCall::OnReadDone(bool ok) {
  if (!ok) return;
  breach_ = Receive(incoming_);
  if (breach_.ok()) {
    StartRead(&incoming_);
  } else {
    context_.TryCancel();
  }
}

absl::Status AttendCall::Receive(const grpc::ByteBuffer& message) {
  if (statistics_.has_value())
    return absl::InternalError("server sent a message after the statistics");
  if (CarriesChunks(message)) return ReceiveChunks(message);
  absl::StatusOr<v1::AttendResponse> response = ParseProto<v1::AttendResponse>(message);
  if (!response.ok()) return absl::InternalError(std::string(response.status().message()));
  if (response->has_accepted() == response->has_statistics()) {
    return absl::InternalError(
        "server sent a message that is neither accepted, chunks nor statistics");
  }
  if (response->has_accepted() == accepted_) {
    return absl::InternalError(accepted_ ? "server accepted twice"
                                         : "server sent statistics before accepted");
  }
  if (response->has_accepted()) {
    accepted_ = true;
  } else {
    statistics_ = std::move(*response->mutable_statistics());
  }
  return absl::OkStatus();
}

absl::Status AttendCall::ReceiveChunks(const grpc::ByteBuffer& message) {
  if (!accepted_) return absl::InternalError("server sent chunks before accepted");
  const absl::StatusOr<std::vector<DataChunk>> chunks = ParseChunks(message);
  if (!chunks.ok()) return absl::InternalError(std::string(chunks.status().message()));
  for (const DataChunk& chunk : *chunks) {
    // Refuses unknown tensors and bytes past the end: nothing is written before it has said yes.
    const absl::Status status = coverage_.Accept(chunk.tensor, chunk.offset, chunk.size);
    if (!status.ok()) return status;
    const auto download = std::find_if(
        downloads_.begin(), downloads_.end(),
        [&](const CallSpans::Output& candidate) { return candidate.tensor == chunk.tensor; });
    chunk.CopyTo(download->bytes.data() + chunk.offset);
    bytes_moved_ += chunk.size;
  }
  return absl::OkStatus();
}

void AttendCall::OnDone(const grpc::Status& status) {
  status_ = FromGrpc(status, context_);
  if (!breach_.ok()) {
    status_ = breach_;
  } else if (absl::IsCancelled(status_)) {
    // Not by us: a server that shuts down ends so what reaches it then. It may soon be back.
    status_ = WithRetryAfter(absl::UnavailableError("the server ended the call: it shuts down"),
                             kRetryAfterShutdown);
  } else if (status_.ok() && next_upload_ < uploads_.size()) {
    status_ = absl::InternalError("server ended with OK before it had the whole input");
  } else if (status_.ok() && !coverage_.complete()) {
    status_ = absl::InternalError("server ended with OK but result bytes are missing");
  } else if (status_.ok() && !statistics_.has_value()) {
    status_ = absl::InternalError("server ended with OK but sent no statistics");
  }
  done_.Notify();
}

bool AttendCall::AwaitDone(std::chrono::milliseconds timeout) {
  return done_.WaitForNotificationWithTimeout(absl::FromChrono(timeout));
}

absl::StatusOr<v1::Statistics> AttendCall::Result() const {
  if (!status_.ok()) return status_;
  return *statistics_;
}

}  // namespace ringserve
