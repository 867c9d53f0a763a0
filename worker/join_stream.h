// One call of Cluster.Join, from its first message to its end. Moves messages; what they mean is
// JoinClient's business.
#pragma once

#include <deque>
#include <functional>
#include <memory>

#include <grpcpp/client_context.h>
#include <grpcpp/support/client_callback.h>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "ringserve/v1/cluster.grpc.pb.h"

namespace ringserve {

class JoinStream : public grpc::ClientBidiReactor<v1::WorkerMessage, v1::CoordinatorMessage> {
 public:
  // Called on gRPC's threads, one at a time; `on_end` once, last.
  struct Listener {
    std::function<void(v1::CoordinatorMessage message)> on_message;
    std::function<void(const absl::Status& status)> on_end;
  };

  // Begins the call; `hello` goes first. `listener` is not called any more after its on_end, and
  // until then the caller holds the stream.
  static std::shared_ptr<JoinStream> Open(std::unique_ptr<v1::Cluster::Stub> stub,
                                          const v1::WorkerMessage& hello, Listener listener);

  // Any thread, never blocks. Nothing when the call is over.
  void Send(v1::WorkerMessage message);

  // Ends the call soon: on_end follows.
  void Cancel() { context_.TryCancel(); }

  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnDone(const grpc::Status& status) override;

 private:
  JoinStream(std::unique_ptr<v1::Cluster::Stub> stub, Listener listener)
      : stub_(std::move(stub)), listener_(std::move(listener)) {}
  void WriteLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const std::unique_ptr<v1::Cluster::Stub> stub_;
  const Listener listener_;
  grpc::ClientContext context_;
  std::shared_ptr<JoinStream> self_;  // until OnDone
  v1::CoordinatorMessage incoming_;   // gRPC's while a read is under way

  absl::Mutex mu_;
  std::deque<v1::WorkerMessage> outbox_ ABSL_GUARDED_BY(mu_);  // the first is under way if writing_
  bool writing_ ABSL_GUARDED_BY(mu_) = false;
  bool over_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace ringserve
