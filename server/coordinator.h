// The coordinator: decides who is a member, who is admitted, and when a job runs. It moves no
// tensor bytes and holds none: Attend calls do that (server/attend_call.h) and ask here.
//
// One thread of its own owns all state; the public functions hand it events and never block. The
// decisions are pure (server/membership.h, server/admission.h); this class gives them the time, a
// queue of events and a log.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "ringserve/v1/attention.pb.h"
#include "ringserve/v1/cluster.pb.h"
#include "ringserve/v1/shard.pb.h"
#include "server/plan/plan.h"

namespace ringserve {

struct CoordinatorOptions {
  std::chrono::milliseconds heartbeat_interval{200};
  std::chrono::milliseconds lost_after{1'000};
  // A running job none of whose ranks reports progress for so long is failed and its epoch fenced.
  std::chrono::milliseconds exchange_deadline{30'000};
  int64_t max_queued_jobs = 256;
  v1::Measurements measurements = DefaultMeasurements();
  std::string version;
};

// One rank of a job: who holds it.
struct RankPlace {
  std::string worker_id;
  std::string address;  // where Shard is served
};

// An admitted job: planned, and its memory reserved on all its workers.
struct Grant {
  std::shared_ptr<const Plan> plan;
  std::vector<RankPlace> ranks;
};

// What the coordinator tells a job. Called on the coordinator's thread, one at a time: must not
// block, may call the coordinator.
class JobListener {
 public:
  virtual ~JobListener() = default;

  // queued -> reserved.
  virtual void OnAdmitted(Grant grant) = 0;

  // ready -> running: every rank is to be sent this. Once.
  virtual void OnStart(const v1::Start& start) = 0;

  // After RankAstray: this rank's worker holds nothing of the job any more, or is lost.
  virtual void OnRankReleased(int rank) = 0;

  // The job is over, whatever its state: refused (as Attend says), its worker was lost, its epoch
  // ended under it, it made no progress. Marked with WithRetryAfter where another attempt is worth
  // it. Only OnRankReleased may follow; the listener still owes End.
  virtual void OnFailed(const absl::Status& status) = 0;
};

// A worker's membership as seen from its Join call. Called on the coordinator's thread; must not
// block.
class MemberListener {
 public:
  virtual ~MemberListener() = default;
  virtual void Send(const v1::CoordinatorMessage& message) = 0;
  virtual void End(const absl::Status& status) = 0;  // the last call
};

class Coordinator {
 public:
  using JobId = uint64_t;     // unique within this incarnation, never 0
  using MemberId = uint64_t;  // likewise, one per Join call

  using Clock = std::chrono::steady_clock;

  // `now` tells the time, to any thread; a test's may be its own.
  explicit Coordinator(CoordinatorOptions options,
                       std::function<Clock::time_point()> now = Clock::now);
  ~Coordinator();  // fails every job, ends every membership, waits for the thread

  // --- jobs; any thread, never blocks. Functions that name a job that is over do nothing.

  // Queues a job; `header` is valid (proto/validate.h) and has a request id. The listener is held
  // until End. `header.spec` and `options`, and the pass, are what MakePlan is given.
  JobId Submit(v1::AttendHeader header, std::shared_ptr<JobListener> listener,
               bool backward = false);

  // Every rank has said `ready`. The job takes its place in the one order of all jobs.
  void InputComplete(JobId job);

  // After OnStart: this rank's arithmetic and exchanges are over, well or badly.
  void RankIdle(JobId job, int rank);

  // This rank's call to its worker is over, and what became of it there is not known: the worker is
  // asked, and OnRankReleased follows. `suspect`: the call broke by itself, so that the worker may
  // be gone: no new job uses it until it has answered.
  void RankAstray(JobId job, int rank, bool suspect);

  // No rank of the job uses its worker's memory any more; what was reserved is given back. In any
  // state: a queued job is withdrawn. Owed once for every Submit. `outcome` is for the log.
  void End(JobId job, const absl::Status& outcome);

  // --- members; any thread, never blocks

  MemberId Join(v1::Hello hello, std::shared_ptr<MemberListener> listener);
  void Receive(MemberId member, v1::WorkerMessage message);
  void Leave(MemberId member);  // its call is over

  // --- the whole

  // From now on Submit fails with UNAVAILABLE, and Join too.
  void Drain();

  // True when no job is queued or unfinished; waits for that, at most `timeout`.
  bool AwaitIdle(std::chrono::milliseconds timeout);

  // What GetCluster answers, without `limits.max_header_bytes` and what else the service knows
  // itself; a snapshot that is at most one event old.
  v1::GetClusterResponse Describe() const;

  // Since the start; of the same snapshot.
  struct Totals {
    uint64_t epochs = 0;  // that were ready
    uint64_t joined = 0;  // memberships that began
    uint64_t lost = 0;    // memberships that ended, but for those that were left in good order
    bool serving = false;
  };
  Totals totals() const;

  // What a plan may use now (workers 0: none has joined).
  Group group() const;

  // Called on the coordinator's thread when "there are workers" becomes true or false; the health
  // service's business. Set before the first Join.
  void OnServing(std::function<void(bool serving)> listener);

  const v1::Measurements& measurements() const;

 private:
  class Loop;
  std::unique_ptr<Loop> loop_;
};

}  // namespace ringserve
