// One Shard.Run call, from assignment to the last row. gRPC's threads hand chunks to the shard's
// memory and frame the rows for the way out, and wait there for a device's copies, if that is where
// it is; the arithmetic is the engine's.
//
//   assignment -> reserving -> uploading -> ready -> running -> downloading -> ended
//
// Whatever breaks before `running` ends the call at once. From `running` on, the engine's answer is
// awaited in any case: every exchange is performed, and the transport may not be left with half of
// one.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "proto/chunk_sequence.h"
#include "ringserve/v1/shard.pb.h"
#include "worker/rank_job.h"
#include "worker/shard_service.h"

namespace ringserve {

class ShardCall : public grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>,
                  public std::enable_shared_from_this<ShardCall> {
 public:
  // Owns itself until gRPC is done with it.
  static std::shared_ptr<ShardCall> Make(ShardService& service,
                                         grpc::CallbackServerContext* context);

  // Begins to read. Once.
  void Begin();

  // Ends the call with `reason`, see the states above.
  void Drop(const absl::Status& reason);

  // The same if the call is running in this epoch: rows that are final need it no more.
  void DropEpoch(const std::string& epoch, const absl::Status& reason);

  // The same if the call is of this job. True: something of it is still here.
  bool Recall(uint64_t job, const absl::Status& reason);

  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

 private:
  enum class State { kAssignment, kReserving, kUploading, kReady, kRunning, kDownloading, kEnded };

  ShardCall(ShardService& service, grpc::CallbackServerContext* context)
      : service_(service), context_(context) {}

  // What a message does in the present state; not OK ends the call.
  absl::Status TakeLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status TakeAssignmentLocked(const v1::ShardRequest& request)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status TakeChunksLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status TakeStartLocked(const v1::Start& start) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  void Reserve();
  void Reserved(const absl::Status& status, MemoryLedger::Reservation reservation);
  void Computed(const RunResult& result);

  absl::Status UploadedLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void WriteLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void EnterLocked(State state) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void DropLocked(const absl::Status& reason) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void EndLocked(const absl::Status& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void ReleaseLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::StatusOr<bool> NextChunkLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status FetchLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  ShardService& service_;
  grpc::CallbackServerContext* const context_;
  std::shared_ptr<ShardCall> self_;  // until OnDone

  absl::Mutex mu_;
  State state_ ABSL_GUARDED_BY(mu_) = State::kAssignment;
  grpc::ByteBuffer incoming_ ABSL_GUARDED_BY(mu_);  // gRPC's while a read is under way
  std::shared_ptr<RankJob> job_ ABSL_GUARDED_BY(mu_);
  ChunkSequence input_ ABSL_GUARDED_BY(mu_);
  bool unsettled_ ABSL_GUARDED_BY(mu_) =
      false;  // something may still be written to the job's memory
  MemoryLedger::Reservation reservation_ ABSL_GUARDED_BY(mu_);
  std::string epoch_ ABSL_GUARDED_BY(mu_);
  std::optional<absl::Status> dropped_
      ABSL_GUARDED_BY(mu_);  // why a running job's answer is not wanted

  grpc::ByteBuffer outgoing_ ABSL_GUARDED_BY(mu_);  // gRPC's while `writing_`
  bool writing_ ABSL_GUARDED_BY(mu_) = false;
  bool ready_due_ ABSL_GUARDED_BY(mu_) = false;
  std::vector<v1::TensorId> results_ ABSL_GUARDED_BY(mu_);
  size_t next_result_ ABSL_GUARDED_BY(mu_) = 0;  // where the next chunk to be fetched begins
  uint64_t next_offset_ ABSL_GUARDED_BY(mu_) = 0;
  // The chunk that is sent next, on its way while the one before is sent; null: there is none.
  std::unique_ptr<TensorMemory::Fetch> fetch_ ABSL_GUARDED_BY(mu_);
  v1::TensorId fetched_tensor_ ABSL_GUARDED_BY(mu_) = v1::TENSOR_ID_UNSPECIFIED;
  uint64_t fetched_offset_ ABSL_GUARDED_BY(mu_) = 0;
  v1::RankStatistics statistics_ ABSL_GUARDED_BY(mu_);
  absl::Status outcome_ ABSL_GUARDED_BY(mu_);  // in kEnded, sent when the last write is over
};

}  // namespace ringserve
