// Which running job makes no progress. A job's ranks report it with their worker's heartbeats: a
// byte moved, a tile done, or that a kernel is at work, which may take its time. Pure; time is what
// it is told.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "ringserve/v1/cluster.pb.h"

namespace ringserve {

class ProgressWatch {
 public:
  using JobId = uint64_t;

  explicit ProgressWatch(std::chrono::milliseconds deadline) : deadline_(deadline) {}

  void Watch(JobId job) { quiet_[job] = std::chrono::milliseconds(0); }
  void Forget(JobId job) { quiet_.erase(job); }
  void Report(const std::string& worker, const v1::Heartbeat& heartbeat);
  void ForgetWorker(const std::string& worker) { last_.erase(worker); }

  // So much time has passed. The jobs that are past the deadline; they are forgotten.
  std::vector<JobId> Advance(std::chrono::milliseconds passed);

  bool empty() const { return quiet_.empty() && last_.empty(); }

 private:
  struct Seen {
    JobId job = 0;
    uint64_t progress = 0;
  };
  const std::chrono::milliseconds deadline_;
  std::map<JobId, std::chrono::milliseconds> quiet_;
  std::map<std::string, Seen> last_;  // by worker
};

}  // namespace ringserve
