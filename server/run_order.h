// When a job runs: one order for all jobs, in which each takes its place when its input is
// complete. A job starts when all its workers are idle and no earlier one claims any of them, so
// disjoint jobs run side by side and none is passed by for ever. Pure.
//
//   admitted -> ready -> running -> [every rank idle] -> ended
//
// A job that fails keeps its workers busy until its ranks are idle or it ends.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "ringserve/v1/shard.pb.h"

namespace ringserve {

class RunOrder {
 public:
  using JobId = uint64_t;
  struct Started {
    JobId job = 0;
    v1::Start start;
  };
  // Places of these workers in an epoch; none: there is no such epoch now.
  using Bind = std::function<std::optional<v1::Start>(const std::vector<std::string>& workers)>;

  void Admit(JobId job, std::vector<std::string> workers);  // by rank

  // The job takes its place in the order. Once; nothing for a job that has failed.
  void Ready(JobId job);

  // Starts whatever may start. A job of one rank needs no epoch; another that has none claims
  // nothing.
  std::vector<Started> Start(const Bind& bind);

  // True if it was the last rank of a running job.
  bool RankIdle(JobId job, int rank);

  // The job will not start any more.
  void Fail(JobId job);

  void End(JobId job);

  // Not failed and not ended, in the order of admission:
  std::vector<JobId> Involving(const std::string& worker) const;
  std::vector<JobId> RunningIn(const std::string& epoch) const;  // of several ranks
  std::vector<JobId> AwaitingEpoch() const;                      // of several ranks, not started

  // Does a job of several ranks run in this epoch, failed or not?
  bool Uses(const std::string& epoch) const;
  // Not ended, failed or not.
  bool Occupies(const std::string& worker) const;

  const std::vector<std::string>& WorkersOf(JobId job) const { return jobs_.at(job).workers; }
  // Where a job of several ranks was started; else empty.
  std::string EpochOf(JobId job) const;
  // The job that has this worker, 0: it is idle.
  JobId RunningOn(const std::string& worker) const;

 private:
  struct Job {
    std::vector<std::string> workers;
    bool failed = false;
    bool ready = false;
    bool started = false;
    int running = 0;    // ranks
    std::string epoch;  // where it was started; empty for one rank
  };

  std::map<JobId, Job> jobs_;
  std::vector<JobId> ready_;           // neither started nor failed, in their order
  std::map<std::string, JobId> busy_;  // by worker
};

}  // namespace ringserve
