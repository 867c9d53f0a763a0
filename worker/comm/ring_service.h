// The Ring service of a worker: takes the calls that bring frames to the communicators of its
// epochs, and builds those.
#pragma once

#include <map>
#include <memory>
#include <string>

#include <grpcpp/security/credentials.h>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "proto/transport.h"
#include "ringserve/v1/cluster.pb.h"
#include "ringserve/v1/shard.grpc.pb.h"
#include "worker/comm/communicator.h"
#include "worker/comm/errands.h"
#include "worker/comm/grpc_communicator.h"

namespace ringserve {

// Outlives the server that serves it, and the communicators that it has built. Thread safe.
class RingService : public v1::Ring::WithRawCallbackMethod_Pass<v1::Ring::Service> {
 public:
  // How to reach the other members, who are reached in the same way: under TLS a client certificate
  // is demanded. INVALID_ARGUMENT: see MakeChannelCredentials.
  static absl::StatusOr<std::unique_ptr<RingService>> Make(const TlsFiles& tls);

  // Waits for the ends of its communicators' calls.
  ~RingService() override;

  // The communicator of an epoch that has members, and one with its index. Waits for nobody:
  // members that do not know the epoch yet are dialled again and again.
  std::shared_ptr<Communicator> Build(const v1::Epoch& epoch);

  grpc::ServerReadReactor<grpc::ByteBuffer>* Pass(grpc::CallbackServerContext* context,
                                                  grpc::ByteBuffer* response) override;

 private:
  RingService(TlsFiles tls, std::shared_ptr<grpc::ChannelCredentials> credentials)
      : tls_(std::move(tls)), credentials_(std::move(credentials)) {}

  // UNAVAILABLE, worth another try: no such epoch here (yet). ReceiverFor's statuses;
  // UNAUTHENTICATED; INVALID_ARGUMENT: metadata is missing.
  absl::StatusOr<std::shared_ptr<RingReceiver>> Find(const grpc::CallbackServerContext& context);

  const TlsFiles tls_;
  const std::shared_ptr<grpc::ChannelCredentials> credentials_;
  const std::shared_ptr<Errands> errands_ = std::make_shared<Errands>();
  absl::Mutex mu_;
  std::map<std::string, std::weak_ptr<GrpcCommunicator>> epochs_ ABSL_GUARDED_BY(mu_);
};

}  // namespace ringserve
