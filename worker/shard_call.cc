#include "worker/shard_call.h"

#include <algorithm>
#include <utility>

#include <spdlog/spdlog.h>

#include "absl/strings/str_cat.h"
#include "proto/protocol.h"
#include "proto/status.h"
#include "proto/tensor_shape.h"
#include "proto/wire.h"
#include "worker/solo_communicator.h"

namespace ringserve {

std::shared_ptr<ShardCall> ShardCall::Make(ShardService& service,
                                           grpc::CallbackServerContext* context) {
  auto call = std::shared_ptr<ShardCall>(new ShardCall(service, context));
  call->self_ = call;
  return call;
}

void ShardCall::Begin() {
  absl::MutexLock lock(&mu_);
  if (state_ == State::kAssignment) StartRead(&incoming_);
}

void ShardCall::Drop(const absl::Status& reason) {
  absl::MutexLock lock(&mu_);
  DropLocked(reason);
}

void ShardCall::DropEpoch(const std::string& epoch, const absl::Status& reason) {
  absl::MutexLock lock(&mu_);
  if (epoch_ == epoch && state_ == State::kRunning) DropLocked(reason);
}

bool ShardCall::Recall(uint64_t job, const absl::Status& reason) {
  absl::MutexLock lock(&mu_);
  if (job_ == nullptr || job_->assignment.plan.job != job) return false;
  DropLocked(reason);
  return job_ != nullptr;
}

void ShardCall::EnterLocked(State state) {
  static constexpr const char* kNames[] = {"assignment", "reserving",   "uploading", "ready",
                                           "running",    "downloading", "ended"};
  state_ = state;
  if (job_ == nullptr) return;
  spdlog::debug("state={} job={} request={} rank={}", kNames[static_cast<int>(state)],
                job_->assignment.plan.job, job_->assignment.request_id, job_->assignment.plan.rank);
}

void ShardCall::DropLocked(const absl::Status& reason) {
  if (state_ == State::kRunning) {
    if (!dropped_.has_value()) dropped_ = reason;
    service_.resources_.engine.Cancel(*job_);
    return;
  }
  // Rows wait for whoever is to read them, maybe for good. `ready` goes through, and the reason
  // after it.
  const bool rows = state_ >= State::kDownloading;
  EndLocked(reason);
  if (writing_ && rows) context_->TryCancel();
}

void ShardCall::OnReadDone(bool ok) {
  const auto keep = shared_from_this();
  bool reserve = false;
  {
    absl::MutexLock lock(&mu_);
    if (!ok) {
      // After the start a half-close only says that no cancel will come.
      if (state_ < State::kRunning) {
        EndLocked(absl::InvalidArgumentError("the call was closed before `start`"));
      }
      return;
    }
    if (state_ == State::kEnded) return;
    const absl::Status status = TakeLocked();
    if (!status.ok()) {
      DropLocked(status);
      return;
    }
    reserve = state_ == State::kReserving;
    if (!reserve) StartRead(&incoming_);
  }
  if (reserve) Reserve();
}

void ShardCall::OnWriteDone(bool ok) {
  const auto keep = shared_from_this();
  absl::MutexLock lock(&mu_);
  writing_ = false;
  outgoing_.Clear();
  if (state_ == State::kEnded) {
    Finish(ToGrpc(outcome_));
  } else if (ok) {
    WriteLocked();
  }
  // Not ok: the call is broken, and OnCancel says so.
}

void ShardCall::OnCancel() {
  const auto keep = shared_from_this();
  absl::MutexLock lock(&mu_);
  DropLocked(absl::CancelledError("the coordinator broke the call"));
}

void ShardCall::OnDone() {
  {
    absl::MutexLock lock(&mu_);
    writing_ = false;  // the context is gone: nobody may cancel it now
  }
  service_.Ended(this);
  self_.reset();
}

absl::Status ShardCall::TakeLocked() {
  if (CarriesChunks(incoming_)) {
    if (state_ != State::kUploading) {
      return absl::InvalidArgumentError(
          "chunks are expected after `assignment` and before `ready`");
    }
    return TakeChunksLocked();
  }
  const absl::StatusOr<v1::ShardRequest> request = ParseProto<v1::ShardRequest>(incoming_);
  incoming_.Clear();
  if (!request.ok()) return request.status();
  if (request->cancel()) {
    if (state_ != State::kRunning) return absl::CancelledError("cancelled");
    DropLocked(absl::AbortedError("cancelled; every exchange was done"));
    return absl::OkStatus();
  }
  if (state_ == State::kAssignment) return TakeAssignmentLocked(*request);
  if (state_ == State::kReady && request->has_start()) return TakeStartLocked(request->start());
  return absl::InvalidArgumentError("a message of the Shard call came out of turn");
}

absl::Status ShardCall::TakeAssignmentLocked(const v1::ShardRequest& request) {
  if (!request.has_assignment()) {
    return absl::InvalidArgumentError("the first message must be `assignment`");
  }
  absl::StatusOr<RankAssignment> assignment = ParseAssignment(request.assignment());
  if (!assignment.ok()) return assignment.status();
  input_ = assignment->ExpectedInput();
  results_ = assignment->Results();
  job_ = std::make_shared<RankJob>(*std::move(assignment));
  EnterLocked(State::kReserving);
  return absl::OkStatus();
}

absl::Status ShardCall::TakeChunksLocked() {
  const absl::StatusOr<std::vector<DataChunk>> chunks = ParseChunks(incoming_);
  incoming_.Clear();
  if (!chunks.ok()) return chunks.status();
  std::vector<PlacedChunk> placed;
  for (const DataChunk& chunk : *chunks) {
    absl::Status status = input_.Accept(chunk.tensor, chunk.offset, chunk.size);
    if (!status.ok()) return status;
    placed.push_back({&chunk, job_->Data(chunk.tensor) + chunk.offset});
  }
  unsettled_ = true;
  absl::Status status = service_.resources_.memory.Write(placed, job_);
  if (!status.ok()) return status;
  return input_.complete() ? UploadedLocked() : absl::OkStatus();
}

absl::Status ShardCall::TakeStartLocked(const v1::Start& start) {
  RankPlan& plan = job_->assignment.plan;
  std::shared_ptr<Communicator> communicator;
  if (plan.kv_rows.size() == 1) {
    // Bound to nobody: the epoch of a job of one rank may have ended already.
    plan.members = {0};
    communicator = std::make_shared<SoloCommunicator>();
  } else {
    const absl::StatusOr<Seat> seat = service_.resources_.seats.Find(start.epoch());
    if (!seat.ok()) return seat.status();
    absl::Status status = BindMembers(start, seat->index, seat->members, plan);
    if (!status.ok()) return status;
    communicator = seat->communicator;
    epoch_ = start.epoch();
  }
  EnterLocked(State::kRunning);
  service_.resources_.engine.Run(
      job_, std::move(communicator),
      [self = shared_from_this()](const RunResult& result) { self->Computed(result); });
  return absl::OkStatus();
}

void ShardCall::Reserve() {
  uint64_t bytes = 0;
  {
    absl::MutexLock lock(&mu_);
    if (state_ != State::kReserving) return;
    bytes = job_->assignment.peak_bytes;
  }
  service_.resources_.ledger->Reserve(
      bytes, [self = shared_from_this()](const absl::Status& status,
                                         MemoryLedger::Reservation reservation) {
        self->Reserved(status, std::move(reservation));
      });
}

void ShardCall::Reserved(const absl::Status& status, MemoryLedger::Reservation reservation) {
  absl::MutexLock lock(&mu_);
  if (state_ != State::kReserving) return;
  absl::Status allocated = status;
  if (allocated.ok()) allocated = job_->Allocate(service_.resources_.memory);
  if (allocated.ok()) {
    reservation_ = std::move(reservation);
    EnterLocked(State::kUploading);
    if (input_.complete()) allocated = UploadedLocked();
  }
  if (!allocated.ok()) {
    EndLocked(allocated);
    return;
  }
  StartRead(&incoming_);
}

void ShardCall::Computed(const RunResult& result) {
  service_.resources_.ran(result);
  std::string broken_epoch;
  {
    absl::MutexLock lock(&mu_);
    const RankAssignment& assignment = job_->assignment;
    statistics_ = result.statistics;
    statistics_.set_worker(service_.resources_.seats.worker_id());
    spdlog::info(
        "ran job={} request={} epoch={} rank={}/{} status={} seconds={:.4f} compute={:.4f} "
        "wait={:.4f} tiles={} sent={} received={}",
        assignment.plan.job, assignment.request_id, epoch_, assignment.plan.rank,
        assignment.plan.kv_rows.size(), result.status.ToString(), statistics_.total_seconds(),
        statistics_.compute_seconds(), statistics_.exchange_wait_seconds(), statistics_.tiles(),
        statistics_.bytes_sent(), statistics_.bytes_received());
    if (result.communicator_ended) {
      broken_epoch = epoch_;
      EndLocked(absl::UnavailableError(
          absl::StrCat("epoch ", epoch_, " ended under the job: ", result.status.ToString())));
    } else if (dropped_.has_value()) {
      EndLocked(*dropped_);
    } else if (!result.status.ok()) {
      EndLocked(result.status);
    } else {
      EnterLocked(State::kDownloading);
      if (!writing_) WriteLocked();
    }
  }
  if (!broken_epoch.empty()) service_.resources_.epoch_broken(broken_epoch, result.status);
}

absl::Status ShardCall::UploadedLocked() {
  absl::Status status = service_.resources_.memory.Settle();
  if (!status.ok()) return status;
  unsettled_ = false;
  EnterLocked(State::kReady);
  ready_due_ = true;
  if (!writing_) WriteLocked();
  return absl::OkStatus();
}

void ShardCall::WriteLocked() {
  if (std::exchange(ready_due_, false)) {
    v1::ShardResponse response;
    response.set_ready(true);
    outgoing_ = EncodeProto(response);
  } else if (state_ != State::kDownloading) {
    return;
  } else if (const absl::StatusOr<bool> more = NextChunkLocked(); !more.ok()) {
    EndLocked(more.status());
    return;
  } else if (!*more) {
    v1::ShardResponse response;
    *response.mutable_done() = std::move(statistics_);
    outgoing_ = EncodeProto(response);
    // Before the coordinator can know that it is over, or its next job might find the bytes still
    // taken.
    EnterLocked(State::kEnded);
    ReleaseLocked();
    writing_ = true;  // to the end: no OnWriteDone follows
    StartWriteAndFinish(&outgoing_, grpc::WriteOptions(), grpc::Status::OK);
    return;
  }
  writing_ = true;
  StartWrite(&outgoing_);
}

absl::StatusOr<bool> ShardCall::NextChunkLocked() {
  absl::Status status = absl::OkStatus();
  if (fetch_ == nullptr) status = FetchLocked();  // the first
  if (!status.ok()) return status;
  if (fetch_ == nullptr) return false;
  const std::unique_ptr<TensorMemory::Fetch> fetch = std::move(fetch_);
  const v1::TensorId tensor = fetched_tensor_;
  const uint64_t offset = fetched_offset_;
  status = FetchLocked();
  if (!status.ok()) return status;
  const absl::StatusOr<DataChunk> chunk = fetch->Take(tensor, offset);
  if (!chunk.ok()) return chunk.status();
  outgoing_ = EncodeChunks({&*chunk, 1});
  return true;
}

absl::Status ShardCall::FetchLocked() {
  const RankAssignment& assignment = job_->assignment;
  while (next_result_ < results_.size() &&
         next_offset_ == assignment.BytesOf(results_[next_result_])) {
    ++next_result_;
    next_offset_ = 0;
  }
  if (next_result_ == results_.size()) return absl::OkStatus();
  fetched_tensor_ = results_[next_result_];
  fetched_offset_ = next_offset_;
  const uint64_t size = std::min(assignment.BytesOf(fetched_tensor_) - next_offset_, kChunkBytes);
  absl::StatusOr<std::unique_ptr<TensorMemory::Fetch>> fetch =
      service_.resources_.memory.Begin(job_->Data(fetched_tensor_) + next_offset_, size, job_);
  if (!fetch.ok()) return fetch.status();
  fetch_ = *std::move(fetch);
  next_offset_ += size;
  return absl::OkStatus();
}

void ShardCall::EndLocked(const absl::Status& status) {
  if (state_ == State::kEnded) return;
  if (state_ < State::kRunning && !absl::IsCancelled(status)) {
    spdlog::warn("refused job={} request={}: {}", job_ == nullptr ? 0 : job_->assignment.plan.job,
                 job_ == nullptr ? "" : job_->assignment.request_id, status.ToString());
  }
  EnterLocked(State::kEnded);
  outcome_ = status;
  ReleaseLocked();
  if (!writing_) Finish(ToGrpc(outcome_));
}

// A device's copies keep the job's memory: they are waited for, before another job may find the
// bytes taken. If they never end, neither does it.
void ShardCall::ReleaseLocked() {
  fetch_.reset();
  if (std::exchange(unsettled_, false)) service_.resources_.memory.Settle().IgnoreError();
  job_.reset();
  reservation_.Release();
  context_->AddTrailingMetadata(kReleasedKey, "1");
}

}  // namespace ringserve
