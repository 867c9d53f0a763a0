#include "server/run_order.h"

#include <algorithm>
#include <cassert>
#include <set>
#include <utility>

namespace ringserve {

void RunOrder::Admit(JobId job, std::vector<std::string> workers) {
  assert(!workers.empty());
  jobs_[job] = {.workers = std::move(workers)};
}

void RunOrder::Ready(JobId id) {
  const auto job = jobs_.find(id);
  if (job == jobs_.end() || job->second.failed || job->second.ready) return;
  job->second.ready = true;
  ready_.push_back(id);
}

std::vector<RunOrder::Started> RunOrder::Start(const Bind& bind) {
  std::vector<Started> started;
  std::vector<JobId> waiting;
  std::set<std::string> claimed;
  for (const JobId id : ready_) {
    Job& job = jobs_.at(id);
    std::optional<v1::Start> start = bind(job.workers);
    const bool alone = job.workers.size() == 1;
    if (!start.has_value() && !alone) {
      waiting.push_back(id);
      continue;
    }
    const bool free =
        std::none_of(job.workers.begin(), job.workers.end(), [&](const std::string& worker) {
          return busy_.count(worker) > 0 || claimed.count(worker) > 0;
        });
    if (!free) {
      claimed.insert(job.workers.begin(), job.workers.end());
      waiting.push_back(id);
      continue;
    }
    if (!start.has_value()) {
      start.emplace();
      start->add_members(0);
    }
    job.started = true;
    job.running = static_cast<int>(job.workers.size());
    if (!alone) job.epoch = start->epoch();
    for (const std::string& worker : job.workers) busy_[worker] = id;
    started.push_back({id, *std::move(start)});
  }
  ready_ = std::move(waiting);
  return started;
}

bool RunOrder::RankIdle(JobId id, int rank) {
  const auto job = jobs_.find(id);
  if (job == jobs_.end() || !job->second.started) return false;
  const std::vector<std::string>& workers = job->second.workers;
  if (rank < 0 || rank >= static_cast<int>(workers.size())) return false;
  const auto busy = busy_.find(workers[rank]);
  if (busy == busy_.end() || busy->second != id) return false;
  busy_.erase(busy);
  return --job->second.running == 0;
}

void RunOrder::Fail(JobId id) {
  const auto job = jobs_.find(id);
  if (job == jobs_.end()) return;
  job->second.failed = true;
  ready_.erase(std::remove(ready_.begin(), ready_.end(), id), ready_.end());
}

void RunOrder::End(JobId id) {
  Fail(id);
  const auto job = jobs_.find(id);
  if (job == jobs_.end()) return;
  for (const std::string& worker : job->second.workers) {
    if (RunningOn(worker) == id) busy_.erase(worker);
  }
  jobs_.erase(job);
}

std::vector<RunOrder::JobId> RunOrder::Involving(const std::string& worker) const {
  std::vector<JobId> ids;
  for (const auto& [id, job] : jobs_) {
    if (job.failed) continue;
    if (std::find(job.workers.begin(), job.workers.end(), worker) != job.workers.end()) {
      ids.push_back(id);
    }
  }
  return ids;
}

std::vector<RunOrder::JobId> RunOrder::RunningIn(const std::string& epoch) const {
  std::vector<JobId> ids;
  for (const auto& [id, job] : jobs_) {
    if (!job.failed && job.running > 0 && job.workers.size() > 1 && job.epoch == epoch) {
      ids.push_back(id);
    }
  }
  return ids;
}

std::vector<RunOrder::JobId> RunOrder::AwaitingEpoch() const {
  std::vector<JobId> ids;
  for (const auto& [id, job] : jobs_) {
    if (!job.failed && !job.started && job.workers.size() > 1) ids.push_back(id);
  }
  return ids;
}

bool RunOrder::Uses(const std::string& epoch) const {
  return std::any_of(jobs_.begin(), jobs_.end(), [&](const auto& entry) {
    const Job& job = entry.second;
    return job.running > 0 && job.workers.size() > 1 && job.epoch == epoch;
  });
}

bool RunOrder::Occupies(const std::string& worker) const {
  return std::any_of(jobs_.begin(), jobs_.end(), [&](const auto& entry) {
    const std::vector<std::string>& workers = entry.second.workers;
    return std::find(workers.begin(), workers.end(), worker) != workers.end();
  });
}

std::string RunOrder::EpochOf(JobId id) const {
  const auto job = jobs_.find(id);
  return job == jobs_.end() ? "" : job->second.epoch;
}

RunOrder::JobId RunOrder::RunningOn(const std::string& worker) const {
  const auto busy = busy_.find(worker);
  return busy == busy_.end() ? 0 : busy->second;
}

}  // namespace ringserve
