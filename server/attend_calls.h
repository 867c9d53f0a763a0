// The Attend and AttendBackward calls that live, what they share, and the one thread that looks at
// the clock for all of them; one call's course is in attend_call.h.
#pragma once

#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <thread>
#include <vector>

#include <grpcpp/security/credentials.h>
#include <grpcpp/server_context.h>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "server/byte_budget.h"
#include "server/coordinator.h"
#include "server/rate_watch.h"
#include "server/request_record.h"
#include "server/worker_channels.h"

namespace ringserve {

class AttendCall;

struct AttendOptions {
  std::chrono::milliseconds header_patience{10'000};  // from the call to its header
  std::chrono::milliseconds max_deadline{3'600'000};  // from the call to its end
  MinimumRate minimum_rate;
  uint64_t request_bytes = 8 << 20;   // that one request may hold
  uint64_t process_bytes = 64 << 20;  // that all may hold together
  // What a request gets that leaves it to us.
  v1::Balancer default_balancer = v1::BALANCER_AUTO;
  v1::RotateMethod default_rotate = v1::ROTATE_METHOD_AUTO;
  uint64_t max_bias_bytes = uint64_t{4} << 30;
  // Called once with each request's record, when it is complete; any thread, must not block.
  std::function<void(const RequestRecord& record, const absl::Status& outcome)> on_record;
  // Likewise with each answer of "plan" and "get_cluster".
  std::function<void(const char* method, const absl::Status& outcome)> on_answer;
};

// FAILED_PRECONDITION: the bias is larger than this server takes; says the limit.
absl::Status CheckLimits(const AttendOptions& limits, const v1::AttentionSpec& spec);

// Replaces AUTO and UNSPECIFIED; not by what no such request may ask for.
void ApplyDefaults(const AttendOptions& defaults, const v1::AttentionSpec& spec, bool backward,
                   v1::AttentionOptions& options);

class AttendCalls {
 public:
  // `coordinator` outlives this.
  AttendCalls(Coordinator& coordinator, std::shared_ptr<grpc::ChannelCredentials> credentials,
              AttendOptions options);
  ~AttendCalls();  // after all calls: see AbortAll

  // The reactor of a new call of Attend or AttendBackward.
  AttendCall* Accept(grpc::CallbackServerContext* context, bool backward);

  // Ends calls that have no job yet with `reason`, and each that comes later.
  void Drain(const absl::Status& reason);

  // Ends every call with `reason`, without waiting for any rank, and each that comes later.
  void AbortAll(const absl::Status& reason);

  // True when no call is left; waits for that, at most `timeout`.
  bool AwaitNone(std::chrono::milliseconds timeout);

  // Tensor bytes that have been read and not yet been handed on, by all calls.
  uint64_t held_bytes() const { return budget_.held(); }

  const AttendOptions& options() const { return options_; }

 private:
  friend class AttendCall;

  // A call's entry, from its construction to the end of its destruction.
  class Place {
   public:
    explicit Place(AttendCalls& calls) : calls_(calls) {}
    ~Place() { calls_.Remove(this); }
    Place(const Place&) = delete;
    Place& operator=(const Place&) = delete;

   private:
    AttendCalls& calls_;
  };

  void Add(const Place* place, const std::shared_ptr<AttendCall>& call);
  void Remove(const Place* place);
  std::vector<std::shared_ptr<AttendCall>> Living();
  void Watch();

  Coordinator& coordinator_;
  WorkerChannels channels_;
  ByteBudget budget_;
  const AttendOptions options_;

  absl::Mutex mu_;
  std::map<const Place*, std::weak_ptr<AttendCall>> calls_ ABSL_GUARDED_BY(mu_);
  absl::Status refusal_ ABSL_GUARDED_BY(mu_);  // of new calls; OK: none
  bool ending_ ABSL_GUARDED_BY(mu_) = false;
  std::thread watch_;
};

}  // namespace ringserve
