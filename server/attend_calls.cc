#include "server/attend_calls.h"

#include <set>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "proto/tensor_shape.h"
#include "server/attend_call.h"

namespace ringserve {
namespace {

constexpr absl::Duration kTick = absl::Milliseconds(100);

}  // namespace

void ApplyDefaults(const AttendOptions& defaults, const v1::AttentionSpec& spec, bool backward,
                   v1::AttentionOptions& options) {
  if (options.balancer() == v1::BALANCER_UNSPECIFIED || options.balancer() == v1::BALANCER_AUTO) {
    options.set_balancer(defaults.default_balancer);
  }
  const bool fits =
      (!spec.has_bias() && !backward) || defaults.default_rotate != v1::ROTATE_METHOD_PASS_Q;
  if (fits && (options.rotate() == v1::ROTATE_METHOD_UNSPECIFIED ||
               options.rotate() == v1::ROTATE_METHOD_AUTO)) {
    options.set_rotate(defaults.default_rotate);
  }
}

absl::Status CheckLimits(const AttendOptions& limits, const v1::AttentionSpec& spec) {
  if (!spec.has_bias()) return absl::OkStatus();
  const uint64_t bytes = ShapeOf(v1::TENSOR_ID_BIAS, spec).bytes();
  if (bytes <= limits.max_bias_bytes) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat("spec.bias takes ", bytes, " bytes, limit ",
                                                    limits.max_bias_bytes, " (max_bias_bytes)"));
}

AttendCalls::AttendCalls(Coordinator& coordinator,
                         std::shared_ptr<grpc::ChannelCredentials> credentials,
                         AttendOptions options)
    : coordinator_(coordinator),
      channels_(std::move(credentials)),
      budget_(options.process_bytes),
      options_(options),
      watch_([this] { Watch(); }) {}

AttendCalls::~AttendCalls() {
  {
    absl::MutexLock lock(&mu_);
    ending_ = true;
  }
  watch_.join();
}

AttendCall* AttendCalls::Accept(grpc::CallbackServerContext* context, bool backward) {
  const std::shared_ptr<AttendCall> call = AttendCall::Make(*this, context, backward);
  absl::Status refusal;
  {
    absl::MutexLock lock(&mu_);
    refusal = refusal_;
  }
  if (refusal.ok()) {
    call->Begin();
  } else {
    call->DropUnlessSubmitted(refusal);
  }
  return call.get();
}

void AttendCalls::Drain(const absl::Status& reason) {
  {
    absl::MutexLock lock(&mu_);
    refusal_ = reason;
  }
  for (const std::shared_ptr<AttendCall>& call : Living()) call->DropUnlessSubmitted(reason);
}

void AttendCalls::AbortAll(const absl::Status& reason) {
  {
    absl::MutexLock lock(&mu_);
    refusal_ = reason;
  }
  for (const std::shared_ptr<AttendCall>& call : Living()) call->Abort(reason);
}

bool AttendCalls::AwaitNone(std::chrono::milliseconds timeout) {
  const auto none = [this]() ABSL_SHARED_LOCKS_REQUIRED(mu_) { return calls_.empty(); };
  absl::MutexLock lock(&mu_);
  return mu_.AwaitWithTimeout(absl::Condition(&none), absl::FromChrono(timeout));
}

void AttendCalls::Add(const Place* place, const std::shared_ptr<AttendCall>& call) {
  absl::MutexLock lock(&mu_);
  calls_.emplace(place, call);
}

void AttendCalls::Remove(const Place* place) {
  absl::MutexLock lock(&mu_);
  calls_.erase(place);
}

std::vector<std::shared_ptr<AttendCall>> AttendCalls::Living() {
  std::vector<std::shared_ptr<AttendCall>> living;
  absl::MutexLock lock(&mu_);
  for (const auto& [place, call] : calls_) {
    if (std::shared_ptr<AttendCall> alive = call.lock()) living.push_back(std::move(alive));
  }
  return living;
}

void AttendCalls::Watch() {
  for (;;) {
    {
      absl::MutexLock lock(&mu_);
      if (mu_.AwaitWithTimeout(absl::Condition(&ending_), kTick)) return;
    }
    std::set<std::string> workers;
    const v1::GetClusterResponse cluster = coordinator_.Describe();
    for (const v1::Worker& worker : cluster.workers()) workers.insert(worker.id());
    channels_.Keep(workers);
    for (const std::shared_ptr<AttendCall>& call : Living()) {
      call->Tick(AttendCall::Clock::now(), workers);
    }
  }
}

}  // namespace ringserve
