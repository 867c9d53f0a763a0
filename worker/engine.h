// The engine: one thread that owns the device and does all arithmetic and every exchange, on a
// stream of its own where the device has such. Jobs run one at a time, in the order in which they
// were handed over. LibTorch's exceptions end here.
#pragma once

#include <chrono>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "ringserve/v1/attention.pb.h"
#include "ringserve/v1/cluster.pb.h"
#include "worker/comm/communicator.h"
#include "worker/rank_job.h"

namespace ringserve {

class Block;
struct RingStatistics;

struct EngineOptions {
  int threads = 1;  // LibTorch's, the engine's own included
  std::chrono::milliseconds exchange_deadline{30'000};
  std::string device = "cpu";          // as LibTorch names it; all jobs' tensors lie there
  std::shared_ptr<const Block> block;  // of that device; null: the CPU's
  // The device has failed for good: the process is to end. On the engine thread. Not empty where
  // the device is not the CPU.
  std::function<void(const absl::Status& why)> device_lost;
};

// OK; ABORTED: cancelled; INTERNAL: LibTorch threw; else why the communicator ended.
struct RunResult {
  absl::Status status;
  v1::RankStatistics statistics;  // `worker` is left empty
  bool communicator_ended = false;
};

class Engine {
 public:
  using Done = std::function<void(const RunResult&)>;

  explicit Engine(EngineOptions options);

  // Finishes what was handed over: abort the communicators first to have it quick.
  ~Engine();

  // `done` is called once, on the engine thread; the job's memory is final then, for any thread and
  // stream. job->assignment.plan.members is filled in.
  void Run(std::shared_ptr<RankJob> job, std::shared_ptr<Communicator> communicator, Done done);

  // The job, running or waiting, skips its arithmetic and performs every exchange. Nothing if it is
  // done.
  void Cancel(const RankJob& job);

  // Of the job that runs now: its id, bytes moved and tiles done, and whether it is inside a
  // kernel.
  v1::Heartbeat Progress() const;

 private:
  struct Turn;

  void Loop();
  std::shared_ptr<Turn> NextTurn();
  void Perform(Turn& turn);
  absl::Status Compute(Turn& turn, RingStatistics& statistics);
  absl::Status ComeToRest(Turn& turn);
  void GiveMemoryBack() const;

  const EngineOptions options_;
  mutable absl::Mutex mu_;
  std::deque<std::shared_ptr<Turn>> waiting_ ABSL_GUARDED_BY(mu_);
  std::shared_ptr<Turn> running_ ABSL_GUARDED_BY(mu_);
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::thread thread_;
};

// The version of LibTorch that this process runs.
const char* LibTorchVersion();

}  // namespace ringserve
