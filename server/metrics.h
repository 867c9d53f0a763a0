// What the coordinator measures of its requests, for Prometheus. Labels are bounded: methods,
// status codes, phases, roads, balancers and rotate methods, nothing that a caller chooses.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include <prometheus/counter.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>

#include "absl/status/status.h"
#include "ringserve/v1/attention.pb.h"
#include "server/coordinator.h"
#include "server/request_record.h"

namespace ringserve {

// Thread safe.
class RequestMetrics {
 public:
  RequestMetrics();

  // A request whose record is complete.
  void Record(const RequestRecord& record, const absl::Status& outcome);

  // A call of `method` that is over: one of those that requests_total knows from the start.
  void Count(const char* method, const absl::Status& outcome);

  std::shared_ptr<prometheus::Collectable> source() const { return registry_; }

 private:
  const std::shared_ptr<prometheus::Registry> registry_ = std::make_shared<prometheus::Registry>();
  prometheus::Family<prometheus::Counter>& requests_;
  prometheus::Family<prometheus::Histogram>& phase_seconds_;
  prometheus::Family<prometheus::Counter>& tensor_bytes_;
  prometheus::Family<prometheus::Counter>& plans_;
  prometheus::Histogram& imbalance_;
};

// What the cluster is like at the moment of a scrape.
class ClusterMetrics : public prometheus::Collectable {
 public:
  // Outlives neither. `held_bytes`: tensor bytes that were read and not yet handed on.
  ClusterMetrics(const Coordinator& coordinator, std::function<uint64_t()> held_bytes)
      : coordinator_(coordinator), held_bytes_(std::move(held_bytes)) {}

  std::vector<prometheus::MetricFamily> Collect() const override;

 private:
  const Coordinator& coordinator_;
  const std::function<uint64_t()> held_bytes_;
};

}  // namespace ringserve
