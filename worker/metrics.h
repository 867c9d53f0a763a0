// What a worker measures of the jobs that it runs, for Prometheus.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>

#include "absl/status/status.h"
#include "ringserve/v1/attention.pb.h"
#include "worker/memory_ledger.h"

namespace ringserve {

// Thread safe.
class WorkerMetrics {
 public:
  explicit WorkerMetrics(const std::string& version);

  // A rank's part of a job has run, well or badly.
  void Ran(const absl::Status& outcome, const v1::RankStatistics& statistics);

  void Joined(bool joined);

  // `ledger` is asked at every scrape.
  std::vector<std::shared_ptr<prometheus::Collectable>> Sources(
      std::shared_ptr<const MemoryLedger> ledger) const;

 private:
  const std::shared_ptr<prometheus::Registry> registry_ = std::make_shared<prometheus::Registry>();
  prometheus::Family<prometheus::Counter>& jobs_;
  prometheus::Family<prometheus::Histogram>& seconds_;
  prometheus::Family<prometheus::Counter>& exchanged_;
  prometheus::Counter& tiles_;
  prometheus::Counter& memberships_;
  prometheus::Gauge& joined_;
};

}  // namespace ringserve
