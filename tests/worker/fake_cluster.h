// Real worker processes under a coordinator that is the test itself: it plans with the real
// planner, speaks Shard.Run by the generated stubs, and can misbehave at any point.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include <grpcpp/grpcpp.h>

#include "absl/status/status.h"
#include "ringserve/v1/shard.grpc.pb.h"
#include "server/plan/plan.h"
#include "tests/support/process.h"
#include "tests/worker/fake_coordinator.h"

namespace ringserve::test {

// A whole request's tensors, dense bytes in the spec's layout.
struct Tensors {
  std::string q, k, v, out, lse;
};

// One rank's Shard.Run.
class RankCall {
 public:
  RankCall(v1::Shard::Stub& stub, v1::Assignment assignment);
  ~RankCall();  // breaks it

  // False: the call is over.
  bool Assign();
  bool Upload(v1::TensorId tensor, const std::string& shard, uint64_t chunk_bytes = 1 << 20);
  bool UploadShards(const Plan& plan, const Tensors& tensors);
  bool Send(const v1::ShardRequest& request) { return stream_->Write(request); }
  bool Start(const std::string& epoch, const std::vector<int>& members);
  bool Cancel();
  bool AwaitReady();

  // The next message; nothing when the call is over.
  bool Read(v1::ShardResponse& response) { return stream_->Read(&response); }

  // Reads to the end. Puts the rank's rows where they belong in `tensors`; every byte must come
  // once.
  absl::Status Collect(const Plan& plan, Tensors& tensors,
                       v1::RankStatistics* statistics = nullptr);

  // The status, when everything else has been read or thrown away.
  absl::Status Finish();

  void Break() { context_.TryCancel(); }
  const v1::Assignment& assignment() const { return assignment_; }

 private:
  const v1::Assignment assignment_;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReaderWriter<v1::ShardRequest, v1::ShardResponse>> stream_;
  bool finished_ = false;
};

class FakeCluster {
 public:
  // Starts them and waits until all have joined epoch "e1", each at its index. Another program than
  // ringserve-worker where the environment's RINGSERVE_TEST_WORKER says so.
  explicit FakeCluster(int workers, std::vector<std::string> flags = {});

  FakeCoordinator& coordinator() { return coordinator_; }
  Process& worker(int i) { return *workers_[i]; }
  Member& member(int i) { return *members_[i]; }
  v1::Shard::Stub& stub(int i) { return *stubs_[i]; }

  // Gives all workers a new epoch, without the old one's fence.
  bool NextEpoch(const std::string& id);
  const std::string& epoch() const { return epoch_; }

  // A plan over all workers, or fewer. The options say what else.
  Plan MakePlanFor(const v1::AttentionSpec& spec, v1::AttentionOptions options = {}) const;

  // Opens the calls of a job, assigned but without bytes.
  std::vector<std::unique_ptr<RankCall>> Open(const Plan& plan);

  // The whole of a job, as a good coordinator would run it; fills out and lse.
  absl::Status Run(const Plan& plan, Tensors& tensors,
                   std::vector<v1::RankStatistics>* statistics = nullptr);

 private:
  FakeCoordinator coordinator_;
  Spawner spawner_;
  std::vector<std::unique_ptr<Process>> workers_;
  std::vector<Member*> members_;
  std::vector<std::string> addresses_;
  std::vector<std::unique_ptr<v1::Shard::Stub>> stubs_;
  std::string epoch_ = "e1";
  uint64_t next_job_ = 1;
};

}  // namespace ringserve::test
