// The public service. The course of Attend and AttendBackward is in attend_call.h; here are the dry
// run of the planner and the view of the cluster.
#pragma once

#include <deque>
#include <functional>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "ringserve/v1/attention.grpc.pb.h"
#include "server/attend_calls.h"
#include "server/coordinator.h"

namespace ringserve {

class AttentionService
    : public v1::Attention::WithRawCallbackMethod_Attend<
          v1::Attention::WithRawCallbackMethod_AttendBackward<
              v1::Attention::WithCallbackMethod_Plan<
                  v1::Attention::WithCallbackMethod_GetCluster<v1::Attention::Service>>>> {
 public:
  // Both outlive this.
  AttentionService(Coordinator& coordinator, AttendCalls& calls);
  ~AttentionService() override;  // after the server's end

  grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* Attend(
      grpc::CallbackServerContext* context) override;

  grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* AttendBackward(
      grpc::CallbackServerContext* context) override;

  // RESOURCE_EXHAUSTED: too many wait already; says when to retry.
  grpc::ServerUnaryReactor* Plan(grpc::CallbackServerContext* context,
                                 const v1::PlanRequest* request,
                                 v1::PlanResponse* response) override;

  grpc::ServerUnaryReactor* GetCluster(grpc::CallbackServerContext* context,
                                       const v1::GetClusterRequest* request,
                                       v1::GetClusterResponse* response) override;

 private:
  // `request` is valid.
  absl::Status DryRun(const v1::PlanRequest& request, v1::PlanResponse& response) const;
  void RunDryRuns();
  void Finish(grpc::ServerUnaryReactor* reactor, const char* method,
              const absl::Status& answer) const;

  Coordinator& coordinator_;
  AttendCalls& calls_;

  // Plans may take seconds: they have a thread of their own, and gRPC's few stay free.
  absl::Mutex mu_;
  std::deque<std::function<void()>> dry_runs_ ABSL_GUARDED_BY(mu_);
  bool ending_ ABSL_GUARDED_BY(mu_) = false;
  std::thread planner_;
};

}  // namespace ringserve
