// A listener that serves gRPC's standard health service and nothing else, in plaintext wherever it
// listens: for a platform's probes, which speak no TLS. The services that it knows:
//   ""          SERVING while a request would be served: readiness; at first NOT_SERVING
//   "liveness"  SERVING as long as the process answers at all
#pragma once

#include <memory>
#include <string>

#include <grpcpp/generic/async_generic_service.h>
#include <grpcpp/grpcpp.h>

#include "absl/status/statusor.h"

namespace ringserve {

class HealthPort {
 public:
  // INVALID_ARGUMENT: `listen` is neither HOST:PORT nor unix:PATH. UNAVAILABLE: cannot listen
  // there.
  static absl::StatusOr<std::unique_ptr<HealthPort>> Open(const std::string& listen);

  // Waits for nobody.
  ~HealthPort();

  const std::string& address() const { return address_; }

  // Any thread.
  void SetServing(bool serving);

 private:
  HealthPort() = default;

  std::string address_;
  grpc::CallbackGenericService nothing_else_;  // all other methods: UNIMPLEMENTED
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace ringserve
