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

// How long a failure waits for the message before it to leave, and an answer to be taken.
constexpr std::chrono::milliseconds kLastWritePatience{1'000};
constexpr std::chrono::milliseconds kAnswerPatience{10'000};

std::string NewRequestId() {
  absl::BitGen random;
  return absl::StrFormat("%016x", absl::Uniform<uint64_t>(random));
}

}  // namespace

std::shared_ptr<AttendCall> AttendCall::Make(AttendCalls& calls,
                                             grpc::CallbackServerContext* context) {
  auto call = std::shared_ptr<AttendCall>(new AttendCall(calls, context));
  call->self_ = call;
  calls.Add(&call->place_, call);
  return call;
}

AttendCall::AttendCall(AttendCalls& calls, grpc::CallbackServerContext* context)
    : place_(calls),
      calls_(calls),
      context_(context),
      upload_watch_(calls.options_.minimum_rate),
      download_watch_(calls.options_.minimum_rate),
      account_(calls.budget_, calls.options_.request_bytes),
      ranks_(account_) {
  record_.begun = Clock::now();
}

AttendCall::~AttendCall() {
  // Calls that never said anything are not worth a line.
  if (record_.header.has_value()) {
    spdlog::log(outcome_.ok() ? spdlog::level::info : spdlog::level::warn, "attend {}",
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
  absl::StatusOr<v1::AttendHeader> parsed = ParseFirstMessage(incoming_);
  if (!parsed.ok()) return parsed.status();
  v1::AttendHeader header = *std::move(parsed);
  if (header.request_id().empty()) header.set_request_id(NewRequestId());
  ApplyDefaults(calls_.options_, header.spec(), *header.mutable_options());
  absl::Status limits = CheckLimits(calls_.options_, header.spec());
  if (!limits.ok()) return limits;
  record_.request_id = header.request_id();
  state_ = State::kQueued;
  job_ended_ = false;
  record_.job = calls_.coordinator_.Submit(std::move(header), shared_from_this());
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

// --- the course of the call

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
