#include "server/metrics.h"

#include <algorithm>
#include <utility>
#include <vector>

#include <prometheus/metric_family.h>

#include "proto/metrics_port.h"
#include "server/plan/names.h"

namespace ringserve {
namespace {

constexpr const char* kMethods[] = {"attend", "attend_backward", "plan", "get_cluster"};
constexpr const char* kPhases[] = {"queued", "upload", "wait", "compute", "download", "total"};
constexpr const char* kRoads[] = {"upload", "exchange", "download"};

const prometheus::Histogram::BucketBoundaries& RatioBuckets() {
  static const auto& buckets =
      *new prometheus::Histogram::BucketBoundaries{1, 1.01, 1.02, 1.05, 1.1, 1.25, 1.5, 2, 4};
  return buckets;
}

prometheus::MetricFamily Family(prometheus::MetricType type, const char* name, const char* help,
                                double value, std::vector<prometheus::ClientMetric::Label> labels) {
  prometheus::ClientMetric metric;
  metric.label = std::move(labels);
  (type == prometheus::MetricType::Counter ? metric.counter.value : metric.gauge.value) = value;
  return {.name = name, .help = help, .type = type, .metric = {std::move(metric)}};
}

}  // namespace

RequestMetrics::RequestMetrics()
    : requests_(prometheus::BuildCounter()
                    .Name("ringserve_requests_total")
                    .Help("Calls that are over, by method and by the status that their callers "
                          "were given; attend and attend_backward that sent no header are none")
                    .Register(*registry_)),
      phase_seconds_(prometheus::BuildHistogram()
                         .Name("ringserve_request_phase_seconds")
                         .Help("How long the phases of requests that were answered took")
                         .Register(*registry_)),
      tensor_bytes_(prometheus::BuildCounter()
                        .Name("ringserve_tensor_bytes_total")
                        .Help("Tensor bytes of requests that are over: from their clients, between "
                              "their workers, to their clients")
                        .Register(*registry_)),
      plans_(prometheus::BuildCounter()
                 .Name("ringserve_planned_requests_total")
                 .Help("Requests that were admitted and are over, by the balancer and rotate "
                       "method that ran")
                 .Register(*registry_)),
      imbalance_(prometheus::BuildHistogram()
                     .Name("ringserve_request_imbalance_ratio")
                     .Help("Slowest worker's planned work over the mean of all, of requests that "
                           "were admitted and are over")
                     .Register(*registry_)
                     .Add({}, RatioBuckets())) {
  // All are there from the start: a rate does not see the first event of a series that is new.
  for (const char* method : kMethods) {
    for (int code = 0; code <= static_cast<int>(absl::StatusCode::kUnauthenticated); ++code) {
      const auto name = absl::StatusCodeToString(static_cast<absl::StatusCode>(code));
      requests_.Add({{"method", method}, {"code", name}});
    }
  }
  for (const char* phase : kPhases) phase_seconds_.Add({{"phase", phase}}, SecondsBuckets());
  for (const char* road : kRoads) tensor_bytes_.Add({{"road", road}});
  for (int balancer = v1::BALANCER_AUTO + 1; balancer <= v1::Balancer_MAX; ++balancer) {
    for (int rotate = v1::ROTATE_METHOD_AUTO + 1; rotate <= v1::RotateMethod_MAX; ++rotate) {
      plans_.Add({{"balancer", BalancerName(static_cast<v1::Balancer>(balancer))},
                  {"rotate", RotateName(static_cast<v1::RotateMethod>(rotate))}});
    }
  }
}

void RequestMetrics::Record(const RequestRecord& record, const absl::Status& outcome) {
  Count(record.method, outcome);
  uint64_t exchanged = 0;
  for (const v1::RankStatistics& rank : record.ranks) exchanged += rank.bytes_sent();
  tensor_bytes_.Add({{"road", "upload"}}).Increment(static_cast<double>(record.upload_bytes));
  tensor_bytes_.Add({{"road", "exchange"}}).Increment(static_cast<double>(exchanged));
  tensor_bytes_.Add({{"road", "download"}}).Increment(static_cast<double>(record.download_bytes));
  if (record.plan.workers() > 0) {
    plans_
        .Add({{"balancer", BalancerName(record.plan.balancer())},
              {"rotate", RotateName(record.plan.rotate())}})
        .Increment();
    imbalance_.Observe(record.plan.imbalance());
  }
  if (!outcome.ok() || !record.ended.has_value()) return;
  const v1::Statistics statistics = record.ToProto(*record.ended);
  const double seconds[] = {statistics.queued_seconds(),   statistics.upload_seconds(),
                            statistics.wait_seconds(),     statistics.compute_seconds(),
                            statistics.download_seconds(), statistics.total_seconds()};
  for (size_t i = 0; i < std::size(kPhases); ++i) {
    phase_seconds_.Add({{"phase", kPhases[i]}}, SecondsBuckets()).Observe(seconds[i]);
  }
}

void RequestMetrics::Count(const char* method, const absl::Status& outcome) {
  const auto code = absl::StatusCodeToString(outcome.code());
  requests_.Add({{"method", method}, {"code", code}}).Increment();
}

std::vector<prometheus::MetricFamily> ClusterMetrics::Collect() const {
  const v1::GetClusterResponse cluster = coordinator_.Describe();
  const Coordinator::Totals totals = coordinator_.totals();
  uint64_t memory = 0, reserved = 0;
  for (const v1::Worker& worker : cluster.workers()) {
    memory += worker.memory_bytes();
    reserved += worker.reserved_bytes();
  }
  const auto gauge = [](const char* name, const char* help, double value) {
    return Family(prometheus::MetricType::Gauge, name, help, value, {});
  };
  const auto counter = [](const char* name, const char* help, uint64_t value) {
    return Family(prometheus::MetricType::Counter, name, help, static_cast<double>(value), {});
  };
  return {
      gauge("ringserve_serving", "1 while requests are taken: there are workers, and no drain",
            totals.serving),
      gauge("ringserve_workers", "Members of the cluster", cluster.workers_size()),
      gauge("ringserve_cluster_memory_bytes", "What requests may reserve on all workers together",
            static_cast<double>(memory)),
      gauge("ringserve_cluster_reserved_bytes", "What requests have reserved on all workers",
            static_cast<double>(reserved)),
      gauge("ringserve_queued_requests", "Requests that wait for workers or memory",
            cluster.queued_jobs()),
      gauge("ringserve_queued_requests_limit", "Requests that may wait; more are refused",
            static_cast<double>(cluster.limits().max_queued_jobs())),
      gauge("ringserve_admitted_requests", "Requests that are admitted and not over",
            cluster.unfinished_jobs()),
      gauge("ringserve_in_flight_bytes", "Tensor bytes that were read and not yet handed on",
            static_cast<double>(held_bytes_())),
      counter("ringserve_epochs_total", "Groups of workers that were ready to exchange",
              totals.epochs),
      counter("ringserve_workers_joined_total", "Memberships that began", totals.joined),
      counter("ringserve_workers_lost_total",
              "Memberships that ended without a farewell: silence, a broken call, a fault",
              totals.lost),
      Family(prometheus::MetricType::Gauge, "ringserve_build_info", "1; what runs is the label", 1,
             {{"component", "server"}, {"version", cluster.version()}}),
  };
}

}  // namespace ringserve
