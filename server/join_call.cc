#include "server/join_call.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/status.h"

namespace ringserve {

using std::chrono::milliseconds;

namespace {

// A worker that reads has a few waiting at most.
constexpr size_t kMostWaitingMessages = 1'024;

}  // namespace

std::shared_ptr<JoinCall> JoinCall::Make(ClusterService& service) {
  auto call = std::shared_ptr<JoinCall>(new JoinCall(service));
  call->self_ = call;
  return call;
}

void JoinCall::Begin(const absl::Status& refusal) {
  absl::MutexLock lock(&mu_);
  if (outcome_.has_value()) return;  // closed meanwhile
  if (!refusal.ok()) {
    EndLocked(refusal);
    return;
  }
  const milliseconds deadline = service_.options_.hello_deadline;
  hello_alarm_.Set(std::chrono::system_clock::now() + deadline,
                   [weak = weak_from_this(), deadline](bool expired) {
                     const std::shared_ptr<JoinCall> self = weak.lock();
                     if (self == nullptr || !expired) return;
                     absl::MutexLock lock(&self->mu_);
                     if (self->member_.has_value()) return;
                     self->EndLocked(absl::DeadlineExceededError(
                         absl::StrCat("no hello within ", deadline.count(), " ms")));
                   });
  StartRead(&incoming_);
}

void JoinCall::Close(const absl::Status& reason) {
  absl::MutexLock lock(&mu_);
  LeaveLocked();
  EndLocked(reason);
}

void JoinCall::Send(const v1::CoordinatorMessage& message) {
  absl::MutexLock lock(&mu_);
  if (outcome_.has_value()) return;
  if (outbox_.size() >= kMostWaitingMessages) {
    LeaveLocked();
    EndLocked(absl::ResourceExhaustedError(
        absl::StrCat(outbox_.size(), " messages wait for this worker: it does not read")));
    return;
  }
  outbox_.push_back(message);
  WriteLocked();
}

void JoinCall::End(const absl::Status& status) {
  absl::MutexLock lock(&mu_);
  EndLocked(status);
}

void JoinCall::OnReadDone(bool ok) {
  const auto keep = shared_from_this();
  absl::MutexLock lock(&mu_);
  if (outcome_.has_value()) return;
  if (!ok) {
    LeaveLocked();
    EndLocked(member_.has_value() ? absl::OkStatus()
                                  : absl::InvalidArgumentError("the call ended without hello"));
    return;
  }
  TakeLocked();
  if (!outcome_.has_value()) StartRead(&incoming_);
}

void JoinCall::OnWriteDone(bool ok) {
  const auto keep = shared_from_this();
  absl::MutexLock lock(&mu_);
  writing_ = false;
  outbox_.pop_front();
  if (ok) {
    WriteLocked();
  } else {
    outbox_.clear();
  }
  if (outcome_.has_value()) FinishLocked();
}

void JoinCall::OnCancel() {
  const auto keep = shared_from_this();
  absl::MutexLock lock(&mu_);
  LeaveLocked();
  EndLocked(absl::CancelledError("the worker broke the call"));
}

void JoinCall::OnDone() {
  hello_alarm_.Cancel();
  service_.Ended(this);
  self_.reset();
}

void JoinCall::TakeLocked() {
  v1::WorkerMessage message = std::exchange(incoming_, {});
  if (member_.has_value()) {
    service_.coordinator_.Receive(*member_, std::move(message));
    return;
  }
  hello_alarm_.Cancel();
  if (!message.has_hello()) {
    EndLocked(absl::InvalidArgumentError("the first message must be `hello`"));
    return;
  }
  member_ = service_.coordinator_.Join(std::move(*message.mutable_hello()), shared_from_this());
}

void JoinCall::WriteLocked() {
  if (writing_ || outbox_.empty()) return;
  writing_ = true;
  StartWrite(&outbox_.front());
}

void JoinCall::LeaveLocked() {
  if (member_.has_value() && !outcome_.has_value()) service_.coordinator_.Leave(*member_);
}

void JoinCall::EndLocked(const absl::Status& status) {
  if (outcome_.has_value()) return;
  outcome_ = status;
  FinishLocked();
}

// After what waits to be written: a fence may be among it.
void JoinCall::FinishLocked() {
  if (finished_ || writing_) return;
  finished_ = true;
  Finish(ToGrpc(*outcome_));
}

}  // namespace ringserve
