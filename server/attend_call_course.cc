// The course of an Attend or AttendBackward call: what it does next, and how it ends. What it hears
// is in attend_call.cc.
#include <utility>

#include <grpc/grpc.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "proto/protocol.h"
#include "proto/status.h"
#include "proto/wire.h"
#include "server/attend_call.h"

namespace ringserve {
namespace {

// How long a failure waits for the message before it to leave, and an answer to be taken.
constexpr std::chrono::milliseconds kLastWritePatience{1'000};
constexpr std::chrono::milliseconds kAnswerPatience{10'000};

}  // namespace

void AttendCall::PumpLocked() {
  if (state_ == State::kUploading || state_ == State::kReady || state_ == State::kRunning) {
    RouteLocked();
    ranks_.Write(*upload_);
    WriteClientLocked();
    ReadClientLocked();
    ranks_.Read(/*discard=*/false);
    AdvanceLocked();
  }
}

// What goes to several places takes more room than it came in. Where nothing else is held it may go
// on in any case: nobody would come back to it.
void AttendCall::RouteLocked() {
  while (!upload_->routed()) {
    const bool alone = account_.held() == upload_->waiting_bytes();
    if (!alone && !account_.MayRead(UploadRouter::kCopiedBytes)) return;
    account_.Hold(upload_->RouteCopies());
  }
}

// After the last byte, too: only the half-close says that no more will come.
void AttendCall::ReadClientLocked() {
  if (state_ != State::kUploading || reading_ || half_closed_) return;
  if (!upload_->complete() &&
      !(upload_->routed() && ranks_.HasRoom(*upload_) && account_.MayRead(kMaxMessageBytes))) {
    return;
  }
  reading_ = true;
  upload_watch_.Wait(Clock::now());
  StartRead(&incoming_);
}

void AttendCall::WriteClientLocked() {
  if (writing_ || download_->messages().empty()) return;
  OutgoingMessage& next = download_->messages().front();
  outgoing_.Swap(&next.buffer);
  outgoing_bytes_ = outgoing_.Length();
  record_.download_bytes += next.data_bytes;
  download_->messages().pop_front();
  writing_ = true;
  download_watch_.Wait(Clock::now());
  StartWrite(&outgoing_);
}

void AttendCall::AdvanceLocked() {
  if (state_ == State::kUploading && half_closed_ && ranks_.AllReady() &&
      ranks_.AllWritten(*upload_)) {
    state_ = State::kReady;
    record_.input_complete = Clock::now();
    calls_.coordinator_.InputComplete(record_.job);
  } else if (state_ == State::kRunning && ranks_.living() == 0 && !writing_ &&
             download_->messages().empty()) {
    SucceedLocked();
  }
}

void AttendCall::SucceedLocked() {
  state_ = State::kEnded;
  record_.ended = record_.downloaded = Clock::now();
  record_.ranks = ranks_.Statistics();
  v1::AttendResponse response;
  *response.mutable_statistics() = record_.ToProto(*record_.ended);
  outgoing_ = EncodeProto(response);
  finished_ = true;
  StartWriteAndFinish(&outgoing_, grpc::WriteOptions(), grpc::Status::OK);
}

void AttendCall::FailLocked(const absl::Status& status) {
  if (state_ == State::kEnded) return;
  const State before = std::exchange(state_, State::kEnded);
  outcome_ = status;
  if (absl::IsInternal(status)) {
    outcome_ =
        absl::InternalError(absl::StrCat(status.message(), " (request ", record_.request_id, ")"));
  }
  record_.ended = Clock::now();
  record_.ranks = ranks_.Statistics();
  if (!writing_) AnswerFailureLocked();
  if (download_.has_value()) {
    for (const OutgoingMessage& message : download_->messages()) {
      account_.Release(message.buffer.Length());
    }
    download_->messages().clear();
  }
  if (before >= State::kUploading && ranks_.living() > 0) {
    ranks_.Abandon(*upload_);
  } else {
    EndJobLocked();
  }
}

void AttendCall::AnswerFailureLocked() {
  finished_ = true;
  SendRetryAfter(outcome_, context_);
  Finish(ToGrpc(outcome_));
}

void AttendCall::EndJobLocked() {
  if (std::exchange(job_ended_, true)) return;
  calls_.coordinator_.End(record_.job, outcome_);
}

// --- patience

void AttendCall::Tick(Clock::time_point now, const std::set<std::string>& workers) {
  absl::MutexLock lock(&mu_);
  if (state_ != State::kEnded) {
    const absl::Status overdue = OverdueLocked(now);
    if (!overdue.ok()) FailLocked(overdue);
  }
  if (state_ != State::kEnded) return;
  ranks_.BreakLost(workers);
  CutLocked(now);
}

// What the client does not read stands in the way of its status: a cancelled call's goes past it.
void AttendCall::CutLocked(Clock::time_point now) {
  const std::chrono::milliseconds patience = finished_ ? kAnswerPatience : kLastWritePatience;
  if (left_ || cut_ || now - *record_.ended < patience) return;
  cut_ = true;
  const grpc::Status status =
      ToGrpc(outcome_.ok() ? absl::DeadlineExceededError("the client does not take its answer")
                           : outcome_);
  grpc_call_cancel_with_status(context_->c_call(),
                               static_cast<grpc_status_code>(status.error_code()),
                               status.error_message().c_str(), nullptr);
}

absl::Status AttendCall::OverdueLocked(Clock::time_point now) const {
  const AttendOptions& options = calls_.options_;
  const auto seconds = [](std::chrono::milliseconds time) {
    return absl::StrCat(std::chrono::duration<double>(time).count(), " s");
  };
  if (state_ == State::kHeader && now - *record_.begun >= options.header_patience) {
    return absl::DeadlineExceededError(
        absl::StrCat("no header within ", seconds(options.header_patience)));
  }
  if (now - *record_.begun >= options.max_deadline) {
    return absl::DeadlineExceededError(absl::StrCat("the call took longer than ",
                                                    seconds(options.max_deadline),
                                                    ", the most that this server allows"));
  }
  for (const RateWatch* watch : {&upload_watch_, &download_watch_}) {
    if (!watch->TooSlow(now)) continue;
    if (watch == &upload_watch_ && upload_->complete()) {
      return absl::DeadlineExceededError(absl::StrCat("the call was not half-closed within ",
                                                      seconds(options.minimum_rate.window),
                                                      " of the last byte of the upload"));
    }
    return absl::DeadlineExceededError(absl::StrFormat(
        "%s slower than the minimum rate of %.0f bytes per second, over %s of waiting for the "
        "client",
        watch == &upload_watch_ ? "upload" : "download", options.minimum_rate.bytes_per_second,
        seconds(options.minimum_rate.window)));
  }
  return absl::OkStatus();
}

}  // namespace ringserve
