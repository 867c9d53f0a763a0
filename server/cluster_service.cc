#include "server/cluster_service.h"

#include <utility>
#include <vector>

#include "server/join_call.h"

namespace ringserve {

ClusterService::ClusterService(Coordinator& coordinator, ClusterServiceOptions options)
    : coordinator_(coordinator), options_(std::move(options)) {}

grpc::ServerBidiReactor<v1::WorkerMessage, v1::CoordinatorMessage>* ClusterService::Join(
    grpc::CallbackServerContext* context) {
  const std::shared_ptr<JoinCall> call = JoinCall::Make(*this);
  absl::Status refusal;
  {
    absl::MutexLock lock(&mu_);
    calls_.emplace(call.get(), call);
    refusal = closed_;
  }
  if (refusal.ok() && !PeerIsTrusted(*context, options_.tls)) {
    refusal = absl::UnauthenticatedError("Cluster.Join demands a client certificate");
  }
  call->Begin(refusal);
  return call.get();
}

void ClusterService::Close(const absl::Status& reason) {
  std::vector<std::shared_ptr<JoinCall>> calls;
  {
    absl::MutexLock lock(&mu_);
    if (closed_.ok()) closed_ = reason;
    for (const auto& [call, weak] : calls_) {
      if (std::shared_ptr<JoinCall> living = weak.lock()) calls.push_back(std::move(living));
    }
  }
  for (const std::shared_ptr<JoinCall>& call : calls) call->Close(reason);
}

void ClusterService::Ended(const JoinCall* call) {
  absl::MutexLock lock(&mu_);
  calls_.erase(call);
}

}  // namespace ringserve
