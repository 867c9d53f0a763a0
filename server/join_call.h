// One Cluster.Join call: hello within a deadline, then messages both ways until either side ends
// it. Once it has ended for this side, the coordinator hears of it no more.
#pragma once

#include <deque>
#include <memory>
#include <optional>

#include <grpcpp/alarm.h>
#include <grpcpp/support/server_callback.h>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "ringserve/v1/cluster.pb.h"
#include "server/cluster_service.h"
#include "server/coordinator.h"

namespace ringserve {

class JoinCall : public grpc::ServerBidiReactor<v1::WorkerMessage, v1::CoordinatorMessage>,
                 public MemberListener,
                 public std::enable_shared_from_this<JoinCall> {
 public:
  // Owns itself until gRPC is done with it.
  static std::shared_ptr<JoinCall> Make(ClusterService& service);

  // Begins to read, or ends the call where `refusal` is not OK. Once.
  void Begin(const absl::Status& refusal);

  // Ends the call and, if the worker has joined, its membership.
  void Close(const absl::Status& reason);

  void Send(const v1::CoordinatorMessage& message) override;
  void End(const absl::Status& status) override;

  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

 private:
  explicit JoinCall(ClusterService& service) : service_(service) {}

  void TakeLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void WriteLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void LeaveLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void EndLocked(const absl::Status& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void FinishLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  ClusterService& service_;
  std::shared_ptr<JoinCall> self_;  // until OnDone

  // Held while the coordinator is called, which never blocks: after End nothing follows.
  absl::Mutex mu_;
  grpc::Alarm hello_alarm_;
  v1::WorkerMessage incoming_ ABSL_GUARDED_BY(mu_);  // gRPC's while a read is under way
  std::optional<Coordinator::MemberId> member_ ABSL_GUARDED_BY(mu_);
  std::deque<v1::CoordinatorMessage> outbox_
      ABSL_GUARDED_BY(mu_);  // the first is gRPC's if writing_
  bool writing_ ABSL_GUARDED_BY(mu_) = false;
  std::optional<absl::Status> outcome_ ABSL_GUARDED_BY(mu_);  // ended for this side
  bool finished_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace ringserve
