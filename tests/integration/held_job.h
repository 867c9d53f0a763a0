// A job that is brought into one state of its life, at one step of its ring if it runs, and stays
// there: the moment at which a fault or a cancel hits it. That it was there is read from the logs.
#pragma once

#include <chrono>
#include <memory>
#include <ostream>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "tests/integration/raw_call.h"
#include "tests/integration/request.h"
#include "tests/support/cluster.h"

namespace ringserve::test {

enum class Moment {
  kQueued,
  kReserved,
  kUploading,
  kReady,
  kStep0,
  kStep1,
  kStep2,
  kDownloading,
};
std::string NameOf(Moment moment);
std::ostream& operator<<(std::ostream& stream, Moment moment);

// Of a worker where jobs are held: so little that one request can fill it.
inline constexpr uint64_t kHeldMemoryBytes = 192 << 20;
ClusterOptions HeldClusterOptions();  // three workers

// What a held job computes. All take long enough, or are large enough, to stay in their moment.
const Request& RequestFor(Moment moment);
// Of a few megabytes and milliseconds.
const Request& SmallRequest();

// Index of the cluster's worker that has `rank` of a request, once one has; -1: `timeout` passed.
int WorkerOf(const Cluster& cluster, const std::string& request_id, int rank,
             std::chrono::milliseconds timeout = kPatience);

class HeldJob {
 public:
  // Over `workers` (2 or 3, then also the ring's steps) of the cluster's workers; `rank` is the one
  // whose step counts. `by`: where its caller connects to, if not to the cluster itself.
  HeldJob(Cluster& cluster, Moment moment, int workers = 3, int rank = 0,
          std::chrono::milliseconds deadline = 3 * kPatience, const std::string& by = "");

  // Waits until it is there. Empty: it is; else what happened instead.
  std::string Await(std::chrono::milliseconds timeout = kPatience);

  // After Await: it has not left the moment since.
  bool StillThere() const;

  // Sends what is missing, reads all, and no longer withholds anything.
  absl::StatusOr<Answer> Complete();

  const std::string& id() const { return id_; }
  RawCall& call() { return *call_; }
  const Request& request() const { return RequestFor(moment_); }

 private:
  // What keeps it there: memory that another job holds, workers that other jobs keep busy.
  void Obstruct();
  void FillMemory();
  void KeepWorkersBusy();
  std::string BringThere();
  bool SendRest();
  bool InWorkersLog() const;  // the moment; else in the server's

  Cluster& cluster_;
  const Moment moment_;
  const int workers_;
  const int rank_;
  const std::string id_;
  std::vector<std::unique_ptr<RawCall>> obstacles_;
  std::unique_ptr<RawCall> call_;
  size_t q_sent_ = 0;
  bool all_sent_ = false;
  const Process* witness_ = nullptr;  // whose log says where it is
};

}  // namespace ringserve::test
