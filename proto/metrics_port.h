// A listener that serves what a process measures, at /metrics, in Prometheus' text format and
// nothing else; plain HTTP wherever it listens.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include <prometheus/collectable.h>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace prometheus {
class Exposer;
}

namespace ringserve {

class MetricsPort {
 public:
  using Sources = std::vector<std::shared_ptr<prometheus::Collectable>>;

  // `sources` are asked at every scrape, on a thread of the port's own.
  // UNAVAILABLE: cannot listen there.
  static absl::StatusOr<std::unique_ptr<MetricsPort>> Open(const std::string& listen,
                                                           Sources sources);
  ~MetricsPort();  // waits for scrapes under way

  const std::string& address() const { return address_; }

 private:
  MetricsPort() = default;

  std::string address_;
  Sources sources_;
  std::unique_ptr<prometheus::Exposer> exposer_;
};

// INVALID_ARGUMENT, naming `flag`: not HOST:PORT. Empty: there is no such listener.
absl::Status CheckMetricsAddress(const std::string& flag, const std::string& address);

// What both kinds of process say alike: seconds from 1 ms to an hour.
const std::vector<double>& SecondsBuckets();

}  // namespace ringserve
