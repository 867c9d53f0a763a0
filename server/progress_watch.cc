#include "server/progress_watch.h"

namespace ringserve {

void ProgressWatch::Report(const std::string& worker, const v1::Heartbeat& heartbeat) {
  Seen& seen = last_[worker];
  const bool moved = seen.job != heartbeat.job() || seen.progress != heartbeat.progress();
  seen = {heartbeat.job(), heartbeat.progress()};
  const auto quiet = quiet_.find(heartbeat.job());
  if (quiet != quiet_.end() && (moved || heartbeat.computing())) {
    quiet->second = std::chrono::milliseconds(0);
  }
}

std::vector<ProgressWatch::JobId> ProgressWatch::Advance(std::chrono::milliseconds passed) {
  std::vector<JobId> stalled;
  for (auto quiet = quiet_.begin(); quiet != quiet_.end();) {
    quiet->second += passed;
    if (quiet->second <= deadline_) {
      ++quiet;
      continue;
    }
    stalled.push_back(quiet->first);
    quiet = quiet_.erase(quiet);
  }
  return stalled;
}

}  // namespace ringserve
