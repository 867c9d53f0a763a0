// The Cluster service: a thin shell that carries the messages of Join between gRPC and the
// coordinator. Here are the calls that live; one call's course is in join_call.h.
#pragma once

#include <chrono>
#include <map>
#include <memory>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "proto/transport.h"
#include "ringserve/v1/cluster.grpc.pb.h"
#include "server/coordinator.h"

namespace ringserve {

class JoinCall;

struct ClusterServiceOptions {
  TlsFiles tls;  // of the listener: under TLS, Join demands a client certificate
  std::chrono::milliseconds hello_deadline{5'000};
};

class ClusterService : public v1::Cluster::CallbackService {
 public:
  // The coordinator lives until Close.
  ClusterService(Coordinator& coordinator, ClusterServiceOptions options);

  // Statuses beside those of the coordinator (see cluster.proto): UNAUTHENTICATED without a client
  // certificate under TLS, INVALID_ARGUMENT if the first message is not `hello`, DEADLINE_EXCEEDED
  // if it does not come in time, RESOURCE_EXHAUSTED for a worker that does not read.
  grpc::ServerBidiReactor<v1::WorkerMessage, v1::CoordinatorMessage>* Join(
      grpc::CallbackServerContext* context) override;

  // Ends every call with `reason`, and each that comes later. The coordinator is not called any
  // more. Before the server's Shutdown, which waits for calls.
  void Close(const absl::Status& reason);

 private:
  friend class JoinCall;
  void Ended(const JoinCall* call);

  Coordinator& coordinator_;
  const ClusterServiceOptions options_;
  absl::Mutex mu_;
  absl::Status closed_ ABSL_GUARDED_BY(mu_);
  std::map<const JoinCall*, std::weak_ptr<JoinCall>> calls_ ABSL_GUARDED_BY(mu_);
};

}  // namespace ringserve
