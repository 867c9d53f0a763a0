// The Shard service: takes a rank's part of a job in, hands it to the engine, streams its rows out.
// Here are the calls that live, and what they share; one call's course is in shard_call.h.
#pragma once

#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "proto/transport.h"
#include "ringserve/v1/shard.grpc.pb.h"
#include "worker/engine.h"
#include "worker/memory_ledger.h"
#include "worker/seats.h"
#include "worker/tensor_memory.h"

namespace ringserve {

class ShardCall;

// What every call works with; all of it outlives the server.
struct ShardResources {
  Engine& engine;
  TensorMemory& memory;
  Seats& seats;
  std::shared_ptr<MemoryLedger> ledger;
  TlsFiles tls;
  // This epoch's communicator has ended during a job. Called on the engine thread.
  std::function<void(const std::string& epoch, const absl::Status& why)> epoch_broken;
  // A rank's part has run, well or badly. Called on the engine thread.
  std::function<void(const RunResult& result)> ran;
};

class ShardService : public v1::Shard::WithRawCallbackMethod_Run<v1::Shard::Service> {
 public:
  explicit ShardService(ShardResources resources);

  grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* Run(
      grpc::CallbackServerContext* context) override;

  // Ends every call with `reason`: those that run, when their exchanges are over.
  void Drop(const absl::Status& reason);

  // Likewise, those that run in this epoch.
  void DropEpoch(const std::string& epoch, const absl::Status& reason);

  // Likewise, those of this job. True: something of it is still here.
  bool Recall(uint64_t job, const absl::Status& reason);

  // From now on new calls are answered UNAVAILABLE.
  void RefuseNew();

  // True when no call is left before `timeout`.
  bool WaitIdle(std::chrono::milliseconds timeout);

 private:
  friend class ShardCall;
  void Ended(const ShardCall* call);
  std::vector<std::shared_ptr<ShardCall>> Calls();

  const ShardResources resources_;
  absl::Mutex mu_;
  bool refusing_ ABSL_GUARDED_BY(mu_) = false;
  std::map<const ShardCall*, std::weak_ptr<ShardCall>> calls_ ABSL_GUARDED_BY(mu_);
};

}  // namespace ringserve
