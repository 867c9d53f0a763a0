#include "proto/metrics_port.h"

#include <exception>
#include <utility>

#include <prometheus/exposer.h>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "proto/transport.h"

namespace ringserve {

absl::StatusOr<std::unique_ptr<MetricsPort>> MetricsPort::Open(const std::string& listen,
                                                               Sources sources) {
  std::unique_ptr<MetricsPort> port(new MetricsPort);
  try {
    port->exposer_ = std::make_unique<prometheus::Exposer>(listen);
  } catch (const std::exception& error) {
    return absl::UnavailableError(absl::StrCat("cannot listen on ", listen, ": ", error.what()));
  }
  const std::vector<int> ports = port->exposer_->GetListeningPorts();
  port->address_ = BoundAddress(listen, ports.empty() ? 0 : ports[0]);
  port->sources_ = std::move(sources);
  for (const auto& source : port->sources_) port->exposer_->RegisterCollectable(source);
  return port;
}

MetricsPort::~MetricsPort() = default;

absl::Status CheckMetricsAddress(const std::string& flag, const std::string& address) {
  if (absl::StartsWith(address, "unix")) {
    return absl::InvalidArgumentError(
        absl::StrCat(flag, ": is '", address, "': must be HOST:PORT; scrapes come over TCP"));
  }
  return CheckPlaintextAddress(flag, address);
}

const std::vector<double>& SecondsBuckets() {
  static const auto& buckets = *new std::vector<double>{0.001, 0.003, 0.01, 0.03, 0.1, 0.3,  1,
                                                        3,     10,    30,   100,  300, 1000, 3600};
  return buckets;
}

}  // namespace ringserve
