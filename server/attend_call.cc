#include "server/attend_call.h"

#include <algorithm>
#include <utility>
#include <vector>

#include <grpc/grpc.h>
#include <spdlog/spdlog.h>

#include "absl/random/random.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "proto/protocol.h"
#include "proto/status.h"
#include "proto/wire.h"
#include "server/first_message.h"

namespace ringserve {
namespace {

std::string NewRequestId() {
  absl::BitGen random;
  return absl::StrFormat("%016x", absl::Uniform<uint64_t>(random));
}

}  // namespace

std::shared_ptr<AttendCall> AttendCall::Make(AttendCalls& calls,
                                             grpc::CallbackServerContext* context, bool backward) {
  auto call = std::shared_ptr<AttendCall>(new AttendCall(calls, context, backward));
  call->self_ = call;
  calls.Add(&call->place_, call);
  return call;
}

AttendCall::AttendCall(AttendCalls& calls, grpc::CallbackServerContext* context, bool backward)
    : place_(calls),
      calls_(calls),
      context_(context),
      backward_(backward),
      upload_watch_(calls.options_.minimum_rate),
      download_watch_(calls.options_.minimum_rate),
      account_(calls.budget_, calls.options_.request_bytes),
      ranks_(account_) {
  if (backward) record_.method = "attend_backward";
  record_.begun = Clock::now();
}

AttendCall::~AttendCall() {
  // Calls that never said anything are not worth a line.
  if (record_.header.has_value()) {
    spdlog::log(outcome_.ok() ? spdlog::level::info : spdlog::level::warn, "{} {}", record_.method,
                record_.LogLine(outcome_));
    if (calls_.options_.on_record) calls_.options_.on_record(record_, outcome_);
  }
}

void AttendCall::Begin() {
  absl::MutexLock lock(&mu_);
  if (state_ != State::kHeader) return;
  reading_ = true;
  StartRead(&incoming_);
}

void AttendCall::DropUnlessSubmitted(const absl::Status& reason) {
  absl::MutexLock lock(&mu_);
  if (state_ == State::kHeader) FailLocked(reason);
}

void AttendCall::Abort(const absl::Status& reason) {
  absl::MutexLock lock(&mu_);
  FailLocked(reason);
  ranks_.Forsake();
  if (ranks_.living() == 0) EndJobLocked();
}

// --- the client

void AttendCall::OnReadDone(bool ok) {
  const auto keep = shared_from_this();
  absl::MutexLock lock(&mu_);
  reading_ = false;
  if (state_ == State::kEnded) {
    incoming_.Clear();  // the job may live on for long
    return;
  }
  upload_watch_.Moved(ok ? incoming_.Length() : 0, Clock::now());
  absl::Status status;
  if (!ok) {
    if (context_->IsCancelled()) return;  // OnCancel says so
    status = TakeHalfCloseLocked();
  } else {
    status = state_ == State::kHeader ? TakeHeaderLocked() : TakeUploadLocked();
  }
  incoming_.Clear();
  if (!status.ok()) {
    FailLocked(status);
  } else {
    PumpLocked();
  }
}

absl::Status AttendCall::TakeHeaderLocked() {
  record_.header = Clock::now();
  absl::StatusOr<v1::AttendHeader> parsed = ParseFirstMessage(incoming_, backward_);
  if (!parsed.ok()) return parsed.status();
  v1::AttendHeader header = *std::move(parsed);
  if (header.request_id().empty()) header.set_request_id(NewRequestId());
  ApplyDefaults(calls_.options_, header.spec(), backward_, *header.mutable_options());
  absl::Status limits = CheckLimits(calls_.options_, header.spec());
  if (!limits.ok()) return limits;
  record_.request_id = header.request_id();
  state_ = State::kQueued;
  job_ended_ = false;
  record_.job = calls_.coordinator_.Submit(std::move(header), shared_from_this(), backward_);
  return absl::OkStatus();
}

absl::Status AttendCall::TakeUploadLocked() {
  if (!CarriesChunks(incoming_)) {
    const absl::StatusOr<v1::AttendRequest> request = ParseProto<v1::AttendRequest>(incoming_);
    if (!request.ok()) return request.status();
    return absl::InvalidArgumentError(request->has_header()
                                          ? "a second `header`: only the first message is one"
                                          : "a message without chunks after the header");
  }
  const absl::StatusOr<uint64_t> taken = upload_->Take(incoming_);
  if (!taken.ok()) return taken.status();
  account_.Hold(*taken);
  record_.upload_bytes += *taken;
  return absl::OkStatus();
}

absl::Status AttendCall::TakeHalfCloseLocked() {
  half_closed_ = true;
  if (state_ == State::kHeader) {
    return absl::InvalidArgumentError("the client closed the call without a `header`");
  }
  return upload_->CheckComplete();
}

void AttendCall::OnWriteDone(bool ok) {
  const auto keep = shared_from_this();
  bool open = false;
  {
    absl::MutexLock lock(&mu_);
    writing_ = false;
    outgoing_.Clear();
    account_.Release(std::exchange(outgoing_bytes_, 0));
    if (state_ == State::kEnded) {
      if (!finished_) AnswerFailureLocked();
      return;
    }
    if (!ok) return;  // the call is broken, and OnCancel says so
    open = state_ == State::kAccepting;
    if (!open) PumpLocked();
  }
  if (open) OpenRanks();
}

void AttendCall::OnCancel() {
  const auto keep = shared_from_this();
  absl::MutexLock lock(&mu_);
  if (state_ == State::kEnded) return;
  const bool late = context_->deadline() <= std::chrono::system_clock::now();
  FailLocked(late ? absl::DeadlineExceededError("the client's deadline has passed")
                  : absl::CancelledError("the client went away"));
}

void AttendCall::OnDone() {
  const std::shared_ptr<AttendCall> self = std::move(self_);
  absl::MutexLock lock(&mu_);
  left_ = true;
}

// --- the coordinator

void AttendCall::OnAdmitted(Grant grant) {
  absl::MutexLock lock(&mu_);
  if (state_ != State::kQueued) return;
  record_.admitted = Clock::now();
  record_.plan = Summarize(*grant.plan);
  grant_ = std::move(grant);
  v1::AttendResponse response;
  response.mutable_accepted()->set_request_id(record_.request_id);
  *response.mutable_accepted()->mutable_plan() = record_.plan;
  outgoing_ = EncodeProto(response);
  state_ = State::kAccepting;
  writing_ = true;
  download_watch_.Wait(*record_.admitted);
  StartWrite(&outgoing_);
}

void AttendCall::OpenRanks() {
  std::shared_ptr<const Plan> plan;
  uint64_t job = 0;
  std::string request_id;
  {
    absl::MutexLock lock(&mu_);
    plan = grant_->plan;
    job = record_.job;
    request_id = record_.request_id;
  }
  UploadRouter upload(*plan);
  DownloadRouter download(*plan);
  absl::StatusOr<std::vector<grpc::ByteBuffer>> assignments =
      EncodeAssignments(*plan, job, request_id);
  absl::MutexLock lock(&mu_);
  if (state_ != State::kAccepting) return;
  if (!assignments.ok()) return FailLocked(assignments.status());
  download_watch_.Moved(0, Clock::now());
  upload_.emplace(std::move(upload));
  download_.emplace(std::move(download));
  state_ = State::kUploading;
  ranks_.Open(grant_->ranks, *std::move(assignments), calls_.channels_, shared_from_this());
  PumpLocked();
}

void AttendCall::OnStart(const v1::Start& start) {
  absl::MutexLock lock(&mu_);
  if (state_ != State::kReady) return;  // it has ended meanwhile
  state_ = State::kRunning;
  record_.started = Clock::now();
  record_.epoch = start.epoch();
  ranks_.Start(start);
  PumpLocked();
}

void AttendCall::OnRankReleased(int rank) {
  absl::MutexLock lock(&mu_);
  if (!ranks_.Released(rank)) return;
  RankIdleLocked(rank);
  if (ranks_.living() == 0) EndJobLocked();
}

void AttendCall::OnFailed(const absl::Status& status) {
  absl::MutexLock lock(&mu_);
  FailLocked(status);
}

// --- the ranks

void AttendCall::OnRankWritten(int rank) {
  absl::MutexLock lock(&mu_);
  ranks_.Written(rank);
  if (state_ == State::kEnded) {
    ranks_.Write(*upload_);
  } else {
    PumpLocked();
  }
}

void AttendCall::OnRankMessage(int rank, const grpc::ByteBuffer& message) {
  absl::MutexLock lock(&mu_);
  ranks_.ReadDone(rank);
  RankIdleLocked(rank);
  if (state_ == State::kEnded) {
    ranks_.Read(/*discard=*/true);
    return;
  }
  const absl::Status status = TakeRankMessageLocked(rank, message);
  if (!status.ok()) {
    FailLocked(status);
  } else {
    PumpLocked();
  }
}

absl::Status AttendCall::TakeRankMessageLocked(int rank, const grpc::ByteBuffer& message) {
  const size_t known = download_->messages().size();
  absl::Status status = ranks_.Take(rank, message, *download_);
  for (size_t i = known; i < download_->messages().size(); ++i) {
    account_.Hold(download_->messages()[i].buffer.Length());
  }
  return status;
}

void AttendCall::RankIdleLocked(int rank) {
  if (!ranks_.BecameIdle(rank)) return;
  if (ranks_.AllIdle()) record_.computed = Clock::now();
  calls_.coordinator_.RankIdle(record_.job, rank);
}

void AttendCall::OnRankEnded(int rank, const absl::Status& status, bool released) {
  absl::MutexLock lock(&mu_);
  const absl::Status ended = ranks_.Ended(rank, status, released);
  if (ranks_.Astray(rank)) {
    // First of all: whoever hears of the failure may be back at once.
    calls_.coordinator_.RankAstray(record_.job, rank, /*suspect=*/!ranks_.Broken(rank));
  } else {
    RankIdleLocked(rank);
  }
  if (state_ != State::kEnded && !ended.ok()) FailLocked(ended);
  if (ranks_.living() == 0) EndJobLocked();
  PumpLocked();
}

}  // namespace ringserve
