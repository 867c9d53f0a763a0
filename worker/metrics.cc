#include "worker/metrics.h"

#include <utility>

#include <prometheus/metric_family.h>

#include "proto/metrics_port.h"

namespace ringserve {
namespace {

class LedgerMetrics : public prometheus::Collectable {
 public:
  explicit LedgerMetrics(std::shared_ptr<const MemoryLedger> ledger) : ledger_(std::move(ledger)) {}

  std::vector<prometheus::MetricFamily> Collect() const override {
    const auto gauge = [](const char* name, const char* help, uint64_t bytes) {
      prometheus::ClientMetric metric;
      metric.gauge.value = static_cast<double>(bytes);
      return prometheus::MetricFamily{
          .name = name, .help = help, .type = prometheus::MetricType::Gauge, .metric = {metric}};
    };
    return {gauge("ringserve_worker_memory_bytes", "What jobs may reserve here", ledger_->limit()),
            gauge("ringserve_worker_reserved_bytes", "What jobs have reserved here",
                  ledger_->reserved())};
  }

 private:
  const std::shared_ptr<const MemoryLedger> ledger_;
};

}  // namespace

WorkerMetrics::WorkerMetrics(const std::string& version)
    : jobs_(prometheus::BuildCounter()
                .Name("ringserve_worker_jobs_total")
                .Help("Parts of jobs that have run here, by how they ended")
                .Register(*registry_)),
      seconds_(prometheus::BuildHistogram()
                   .Name("ringserve_worker_job_seconds")
                   .Help("How long parts that ended well took: in arithmetic, in waiting for other "
                         "workers, in all")
                   .Register(*registry_)),
      exchanged_(prometheus::BuildCounter()
                     .Name("ringserve_worker_exchange_bytes_total")
                     .Help("Tensor bytes that went to other workers, or came from them")
                     .Register(*registry_)),
      tiles_(prometheus::BuildCounter()
                 .Name("ringserve_worker_tiles_total")
                 .Help("Tiles that were computed")
                 .Register(*registry_)
                 .Add({})),
      memberships_(prometheus::BuildCounter()
                       .Name("ringserve_worker_memberships_total")
                       .Help("Times that this worker became a member; more than 1: it was dropped")
                       .Register(*registry_)
                       .Add({})),
      joined_(prometheus::BuildGauge()
                  .Name("ringserve_worker_joined")
                  .Help("1 while this worker is a member of the cluster")
                  .Register(*registry_)
                  .Add({})) {
  prometheus::BuildGauge()
      .Name("ringserve_build_info")
      .Help("1; what runs is the label")
      .Register(*registry_)
      .Add({{"component", "worker"}, {"version", version}})
      .Set(1);
  jobs_.Add({{"code", "OK"}});
  for (const char* direction : {"sent", "received"}) exchanged_.Add({{"direction", direction}});
  for (const char* part : {"compute", "exchange_wait", "total"}) {
    seconds_.Add({{"part", part}}, SecondsBuckets());
  }
}

void WorkerMetrics::Ran(const absl::Status& outcome, const v1::RankStatistics& statistics) {
  jobs_.Add({{"code", absl::StatusCodeToString(outcome.code())}}).Increment();
  exchanged_.Add({{"direction", "sent"}}).Increment(static_cast<double>(statistics.bytes_sent()));
  exchanged_.Add({{"direction", "received"}})
      .Increment(static_cast<double>(statistics.bytes_received()));
  tiles_.Increment(static_cast<double>(statistics.tiles()));
  if (!outcome.ok()) return;
  const auto observe = [&](const char* part, double seconds) {
    seconds_.Add({{"part", part}}, SecondsBuckets()).Observe(seconds);
  };
  observe("compute", statistics.compute_seconds());
  observe("exchange_wait", statistics.exchange_wait_seconds());
  observe("total", statistics.total_seconds());
}

void WorkerMetrics::Joined(bool joined) {
  joined_.Set(joined);
  if (joined) memberships_.Increment();
}

std::vector<std::shared_ptr<prometheus::Collectable>> WorkerMetrics::Sources(
    std::shared_ptr<const MemoryLedger> ledger) const {
  return {registry_, std::make_shared<LedgerMetrics>(std::move(ledger))};
}

}  // namespace ringserve
