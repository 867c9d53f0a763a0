#include "worker/shard_service.h"

#include <utility>

#include "absl/time/time.h"
#include "worker/shard_call.h"

namespace ringserve {

ShardService::ShardService(ShardResources resources) : resources_(std::move(resources)) {}

grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* ShardService::Run(
    grpc::CallbackServerContext* context) {
  const std::shared_ptr<ShardCall> call = ShardCall::Make(*this, context);
  absl::Status refusal;
  if (!PeerIsTrusted(*context, resources_.tls)) {
    refusal = absl::UnauthenticatedError("Shard.Run demands a client certificate");
  }
  {
    absl::MutexLock lock(&mu_);
    calls_.emplace(call.get(), call);
    if (refusing_ && refusal.ok()) refusal = absl::UnavailableError("this worker shuts down");
  }
  if (!refusal.ok()) call->Drop(refusal);
  call->Begin();
  return call.get();
}

void ShardService::Drop(const absl::Status& reason) {
  for (const std::shared_ptr<ShardCall>& call : Calls()) call->Drop(reason);
}

void ShardService::DropEpoch(const std::string& epoch, const absl::Status& reason) {
  for (const std::shared_ptr<ShardCall>& call : Calls()) call->DropEpoch(epoch, reason);
}

bool ShardService::Recall(uint64_t job, const absl::Status& reason) {
  bool held = false;
  for (const std::shared_ptr<ShardCall>& call : Calls()) held |= call->Recall(job, reason);
  return held;
}

void ShardService::RefuseNew() {
  absl::MutexLock lock(&mu_);
  refusing_ = true;
}

bool ShardService::WaitIdle(std::chrono::milliseconds timeout) {
  const auto idle = [this]() ABSL_SHARED_LOCKS_REQUIRED(mu_) { return calls_.empty(); };
  absl::MutexLock lock(&mu_);
  return mu_.AwaitWithTimeout(absl::Condition(&idle), absl::FromChrono(timeout));
}

void ShardService::Ended(const ShardCall* call) {
  absl::MutexLock lock(&mu_);
  calls_.erase(call);
}

std::vector<std::shared_ptr<ShardCall>> ShardService::Calls() {
  std::vector<std::shared_ptr<ShardCall>> calls;
  absl::MutexLock lock(&mu_);
  for (const auto& [address, call] : calls_) {
    if (std::shared_ptr<ShardCall> living = call.lock()) calls.push_back(std::move(living));
  }
  return calls;
}

}  // namespace ringserve
