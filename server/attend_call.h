// One Attend or AttendBackward call: what a client says and hears, from header to statistics, and
// the job that it is.
//
//   header -> queued -> accepting -> uploading -> ready -> running -> ended
//
// Nothing is read from the client, and nothing allocated for it, before the job is admitted. Then
// bytes are passed on as they come and never held but for a few messages: whoever is slow is not
// read from. The client's call and the job end apart: a client that goes away, or is refused, is
// answered at once; a job that was started lives until its ranks have done every exchange, and only
// then gives back what it has reserved.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <string>

#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "ringserve/v1/attention.pb.h"
#include "server/attend_calls.h"
#include "server/byte_budget.h"
#include "server/coordinator.h"
#include "server/download_router.h"
#include "server/rank_calls.h"
#include "server/rank_link.h"
#include "server/rate_watch.h"
#include "server/request_record.h"
#include "server/upload_router.h"

namespace ringserve {

class AttendCall final : public grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>,
                         public JobListener,
                         public RankListener,
                         public std::enable_shared_from_this<AttendCall> {
 public:
  using Clock = std::chrono::steady_clock;

  // Owns itself until gRPC, the coordinator and all ranks are done with it.
  static std::shared_ptr<AttendCall> Make(AttendCalls& calls, grpc::CallbackServerContext* context,
                                          bool backward);
  ~AttendCall() override;

  // Begins to read. Once.
  void Begin();

  // Looks at the time: limits of patience, and answers of `workers` alone are still awaited.
  void Tick(Clock::time_point now, const std::set<std::string>& workers);

  // Ends the call with `reason` if no header has come yet.
  void DropUnlessSubmitted(const absl::Status& reason);

  // Ends the call with `reason`, and the job with it: no rank is waited for.
  void Abort(const absl::Status& reason);

  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

  void OnAdmitted(Grant grant) override;
  void OnStart(const v1::Start& start) override;
  void OnRankReleased(int rank) override;
  void OnFailed(const absl::Status& status) override;

  void OnRankWritten(int rank) override;
  void OnRankMessage(int rank, const grpc::ByteBuffer& message) override;
  void OnRankEnded(int rank, const absl::Status& status, bool released) override;

 private:
  enum class State { kHeader, kQueued, kAccepting, kUploading, kReady, kRunning, kEnded };

  AttendCall(AttendCalls& calls, grpc::CallbackServerContext* context, bool backward);

  absl::Status TakeHeaderLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status TakeUploadLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status TakeHalfCloseLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status TakeRankMessageLocked(int rank, const grpc::ByteBuffer& message)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  // From accepting to uploading: makes what takes time without the lock.
  void OpenRanks();

  // Does whatever can be done now: writes, reads, the step into the next state.
  void PumpLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void RouteLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void ReadClientLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void WriteClientLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void AdvanceLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void RankIdleLocked(int rank) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  absl::Status OverdueLocked(Clock::time_point now) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void SucceedLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void FailLocked(const absl::Status& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void AnswerFailureLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void CutLocked(Clock::time_point now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void EndJobLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const AttendCalls::Place place_;  // first: its end says that this is gone
  AttendCalls& calls_;
  grpc::CallbackServerContext* const context_;  // until OnDone
  const bool backward_;
  std::shared_ptr<AttendCall> self_;  // until OnDone

  absl::Mutex mu_;
  State state_ ABSL_GUARDED_BY(mu_) = State::kHeader;
  RequestRecord record_ ABSL_GUARDED_BY(mu_);
  absl::Status outcome_ ABSL_GUARDED_BY(mu_);  // in kEnded
  std::optional<Grant> grant_ ABSL_GUARDED_BY(mu_);
  bool job_ended_ ABSL_GUARDED_BY(mu_) = true;  // no End is owed

  // The client's side.
  grpc::ByteBuffer incoming_ ABSL_GUARDED_BY(mu_);    // gRPC's while `reading_`
  grpc::ByteBuffer outgoing_ ABSL_GUARDED_BY(mu_);    // gRPC's while `writing_`
  uint64_t outgoing_bytes_ ABSL_GUARDED_BY(mu_) = 0;  // of it, counted in account_
  bool reading_ ABSL_GUARDED_BY(mu_) = false;
  bool writing_ ABSL_GUARDED_BY(mu_) = false;
  bool half_closed_ ABSL_GUARDED_BY(mu_) = false;
  bool finished_ ABSL_GUARDED_BY(mu_) = false;  // Finish was called
  bool cut_ ABSL_GUARDED_BY(mu_) = false;       // the client does not take its answer
  bool left_ ABSL_GUARDED_BY(mu_) = false;      // gRPC is done: no context any more
  RateWatch upload_watch_ ABSL_GUARDED_BY(mu_);
  RateWatch download_watch_ ABSL_GUARDED_BY(mu_);

  // The job's side.
  ByteBudget::Account account_ ABSL_GUARDED_BY(mu_);
  std::optional<UploadRouter> upload_ ABSL_GUARDED_BY(mu_);
  std::optional<DownloadRouter> download_ ABSL_GUARDED_BY(mu_);
  RankCalls ranks_ ABSL_GUARDED_BY(mu_);
};

}  // namespace ringserve
