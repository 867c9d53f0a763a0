#include "server/attention_service.h"

#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/protocol.h"
#include "proto/status.h"
#include "proto/validate.h"
#include "server/attend_call.h"
#include "server/plan/plan.h"

namespace ringserve {
namespace {

constexpr size_t kMostDryRuns = 64;
constexpr std::chrono::milliseconds kRetryDryRunAfter{500};
// Above this many bytes the steps are left out of an answer: clients take 4 MiB by default.
constexpr size_t kLargestPlanBytes = 3 << 20;

// The workers to plan for: those that have joined, or as many as are asked for; one where nobody
// has.
Group GroupFor(const v1::AttentionOptions& options, const Group& joined) {
  if (options.workers() > joined.workers) return {options.workers(), 0};
  if (joined.workers == 0) return {1, 0};
  return joined;
}

}  // namespace

AttentionService::AttentionService(Coordinator& coordinator, AttendCalls& calls)
    : coordinator_(coordinator), calls_(calls), planner_([this] { RunDryRuns(); }) {}

AttentionService::~AttentionService() {
  {
    absl::MutexLock lock(&mu_);
    ending_ = true;
  }
  planner_.join();
}

grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* AttentionService::Attend(
    grpc::CallbackServerContext* context) {
  return calls_.Accept(context, /*backward=*/false);
}

grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* AttentionService::AttendBackward(
    grpc::CallbackServerContext* context) {
  return calls_.Accept(context, /*backward=*/true);
}

grpc::ServerUnaryReactor* AttentionService::Plan(grpc::CallbackServerContext* context,
                                                 const v1::PlanRequest* request,
                                                 v1::PlanResponse* response) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  // What is refused must not wait: it may be far larger in memory than any that is valid.
  absl::Status status = ValidatePlanRequest(*request);
  if (status.ok()) {
    absl::MutexLock lock(&mu_);
    if (dry_runs_.size() < kMostDryRuns) {
      dry_runs_.push_back([this, context, reactor, request, response] {
        // Nobody waits for it any more, or the server shuts down.
        const absl::Status answer = context->IsCancelled() ? absl::CancelledError("cancelled")
                                                           : DryRun(*request, *response);
        Finish(reactor, "plan", answer);
      });
      return reactor;
    }
    status = WithRetryAfter(absl::ResourceExhaustedError(absl::StrCat(
                                kMostDryRuns, " dry runs are waiting: at most so many")),
                            kRetryDryRunAfter);
  }
  SendRetryAfter(status, context);
  Finish(reactor, "plan", status);
  return reactor;
}

// The count comes first: whoever has the answer finds itself counted.
void AttentionService::Finish(grpc::ServerUnaryReactor* reactor, const char* method,
                              const absl::Status& answer) const {
  if (calls_.options().on_answer) calls_.options().on_answer(method, answer);
  reactor->Finish(ToGrpc(answer));
}

void AttentionService::RunDryRuns() {
  const auto due = [this]()
                       ABSL_SHARED_LOCKS_REQUIRED(mu_) { return ending_ || !dry_runs_.empty(); };
  for (;;) {
    std::function<void()> next;
    {
      absl::MutexLock lock(&mu_);
      mu_.Await(absl::Condition(&due));
      if (dry_runs_.empty()) return;
      next = std::move(dry_runs_.front());
      dry_runs_.pop_front();
    }
    next();
  }
}

absl::Status AttentionService::DryRun(const v1::PlanRequest& request,
                                      v1::PlanResponse& response) const {
  v1::AttentionOptions options = request.options();
  ApplyDefaults(calls_.options(), request.spec(), request.backward(), options);
  const absl::Status limits = CheckLimits(calls_.options(), request.spec());
  if (!limits.ok()) return limits;
  const absl::StatusOr<ringserve::Plan> plan = MakePlan(
      request.spec(), options, GroupFor(options, coordinator_.group()), coordinator_.measurements(),
      {.backward = request.backward(), .d_lse = request.backward()});
  if (!plan.ok()) return plan.status();
  *response.mutable_plan() = Summarize(*plan);
  response.set_description(Describe(*plan));
  for (v1::RankSteps& steps : SummarizeSteps(*plan)) *response.add_ranks() = std::move(steps);
  if (response.ByteSizeLong() > kLargestPlanBytes) {
    response.clear_ranks();
    response.mutable_description()->append(
        "(the list of every rank's steps is too long to send)\n");
  }
  return absl::OkStatus();
}

grpc::ServerUnaryReactor* AttentionService::GetCluster(grpc::CallbackServerContext* context,
                                                       const v1::GetClusterRequest*,
                                                       v1::GetClusterResponse* response) {
  *response = coordinator_.Describe();
  v1::Limits& limits = *response->mutable_limits();
  limits.set_max_header_bytes(kMaxHeaderBytes);
  limits.set_max_message_bytes(kMaxMessageBytes);
  limits.set_max_deadline_seconds(
      std::chrono::duration<double>(calls_.options().max_deadline).count());
  limits.set_min_rate_bytes_per_second(calls_.options().minimum_rate.bytes_per_second);
  limits.set_max_bias_bytes(calls_.options().max_bias_bytes);
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  Finish(reactor, "get_cluster", absl::OkStatus());
  return reactor;
}

}  // namespace ringserve
