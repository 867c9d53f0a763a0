// The coordinator's thread: gives the pure machines their events, one after another, and does what
// they decide. What it owns is its own; what others may read is a snapshot under a lock.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "server/admission.h"
#include "server/coordinator.h"
#include "server/membership.h"
#include "server/planner.h"
#include "server/progress_watch.h"
#include "server/run_order.h"

namespace ringserve {

class Coordinator::Loop {
 public:
  Loop(CoordinatorOptions options, std::function<Clock::time_point()> now);
  ~Loop();

  // What the events do; on the loop's thread.
  void Submit(JobId id, v1::AttendHeader header, std::shared_ptr<JobListener> listener,
              bool backward);
  void Planned(const Admission::PlanRequest& request,
               const absl::StatusOr<std::shared_ptr<const Plan>>& plan);
  void InputComplete(JobId id);
  void RankIdle(JobId id, int rank);
  void RankAstray(JobId id, int rank, bool suspect);
  void End(JobId id, const absl::Status& outcome);
  void Join(MemberId id, const v1::Hello& hello, std::shared_ptr<MemberListener> listener);
  void Receive(MemberId id, const v1::WorkerMessage& message);
  void Leave(MemberId id);
  void Drain();
  void OnServing(std::function<void(bool)> listener);

  // Any thread.
  void Post(std::function<void()> event);
  void CountJob();  // before its Submit is posted
  bool AwaitIdle(std::chrono::milliseconds timeout);
  v1::GetClusterResponse Describe() const;
  Totals totals() const;
  Group group() const;
  const CoordinatorOptions& options() const { return options_; }

 private:
  struct Job {
    std::string request_id;
    std::shared_ptr<JobListener> listener;
    bool over = false;  // OnFailed was called
  };
  struct Snapshot {
    v1::GetClusterResponse cluster;
    std::vector<Clock::time_point> heard;  // by worker of `cluster`
    Totals totals;
    Group group;
  };

  void Run();
  void Tick();
  void Settle();
  void Stop();
  void Do(Membership::Actions actions);
  void Do(Admission::Decisions decisions);
  void Start(const std::vector<RunOrder::Started>& started);
  void ReleaseEpochs();
  void SetWorkers();
  void Fail(JobId id, const absl::Status& status);
  void Publish();
  std::vector<Admission::Capacity> Usable() const;

  const CoordinatorOptions options_;
  const std::function<Clock::time_point()> now_;

  // The thread's own.
  Membership membership_;
  Admission admission_;
  RunOrder order_;
  ProgressWatch watch_;
  std::map<JobId, Job> jobs_;  // not ended
  std::map<MemberId, std::shared_ptr<MemberListener>> members_;
  std::map<MemberId, Clock::time_point> heard_;
  std::vector<Admission::Capacity> usable_;  // what admission knows
  std::function<void(bool)> on_serving_;
  Totals totals_;
  std::string counted_epoch_;  // the newest in totals_
  bool draining_ = false;

  mutable absl::Mutex mu_;
  std::vector<std::function<void()>> events_ ABSL_GUARDED_BY(mu_);
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  int64_t unfinished_ ABSL_GUARDED_BY(mu_) = 0;  // submitted and not ended
  Snapshot snapshot_ ABSL_GUARDED_BY(mu_);
  Planner planner_;
  std::thread thread_;
};

}  // namespace ringserve
