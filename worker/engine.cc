#include "worker/engine.h"

#include <malloc.h>

#include <utility>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/InferenceMode.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <spdlog/spdlog.h>
#include <torch/headeronly/version.h>

#include "proto/tensor_shape.h"
#include "worker/attention/backward_ring.h"
#include "worker/attention/ring.h"
#include "worker/rank_tensors.h"

namespace ringserve {

struct Engine::Turn {
  std::shared_ptr<RankJob> job;  // until it is done
  uint64_t job_id = 0;
  std::shared_ptr<Communicator> communicator;
  Done done;
  RingProgress progress;
};

namespace {

constexpr absl::Duration kIdleBeforeTrim = absl::Seconds(1);

v1::RankStatistics ToProto(const RingStatistics& statistics, double total_seconds) {
  v1::RankStatistics out;
  out.set_compute_seconds(statistics.compute_seconds);
  out.set_exchange_wait_seconds(statistics.exchange_wait_seconds);
  out.set_total_seconds(total_seconds);
  out.set_bytes_sent(statistics.bytes_sent);
  out.set_bytes_received(statistics.bytes_received);
  out.set_tiles(statistics.tiles);
  return out;
}

}  // namespace

Engine::Engine(EngineOptions options) : options_(options), thread_([this] { Loop(); }) {}

Engine::~Engine() {
  {
    absl::MutexLock lock(&mu_);
    stopping_ = true;
  }
  thread_.join();
}

void Engine::Run(std::shared_ptr<RankJob> job, std::shared_ptr<Communicator> communicator,
                 Done done) {
  auto turn = std::make_shared<Turn>();
  turn->job = std::move(job);
  turn->job_id = turn->job->assignment.plan.job;
  turn->communicator = std::move(communicator);
  turn->done = std::move(done);
  absl::MutexLock lock(&mu_);
  waiting_.push_back(std::move(turn));
}

void Engine::Cancel(const RankJob& job) {
  absl::MutexLock lock(&mu_);
  if (running_ != nullptr && running_->job.get() == &job) running_->progress.cancelled = true;
  for (const std::shared_ptr<Turn>& turn : waiting_) {
    if (turn->job.get() == &job) turn->progress.cancelled = true;
  }
}

v1::Heartbeat Engine::Progress() const {
  std::shared_ptr<Turn> turn;
  {
    absl::MutexLock lock(&mu_);
    turn = running_;
  }
  v1::Heartbeat heartbeat;
  if (turn == nullptr) return heartbeat;
  uint64_t progress = turn->progress.tiles_done;
  for (const PeerCounters& peer : turn->communicator->counters()) {
    progress += peer.bytes_sent + peer.bytes_received;
  }
  heartbeat.set_job(turn->job_id);
  heartbeat.set_progress(progress);
  heartbeat.set_computing(turn->progress.computing);
  return heartbeat;
}

void Engine::Loop() {
  at::set_num_threads(options_.threads);
  c10::InferenceMode inference;
  const c10::Device device(options_.device);
  const c10::StreamGuard computing(c10::impl::VirtualGuardImpl(device.type()).getNewStream(device));
  while (const std::shared_ptr<Turn> turn = NextTurn()) Perform(*turn);
}

std::shared_ptr<Engine::Turn> Engine::NextTurn() {
  const auto something_to_do = [this]() ABSL_SHARED_LOCKS_REQUIRED(mu_) {
    return stopping_ || !waiting_.empty();
  };
  absl::MutexLock lock(&mu_);
  // Again and again: rows that are read slowly hold their memory for long.
  while (!mu_.AwaitWithTimeout(absl::Condition(&something_to_do), kIdleBeforeTrim)) {
    mu_.Unlock();
    GiveMemoryBack();
    mu_.Lock();
  }
  if (waiting_.empty()) return nullptr;
  running_ = std::move(waiting_.front());
  waiting_.pop_front();
  return running_;
}

void Engine::Perform(Turn& turn) {
  const auto begin = std::chrono::steady_clock::now();
  RunResult result;
  RingStatistics statistics;
  result.status = Compute(turn, statistics);
  if (!result.status.ok()) {
    result.communicator_ended = !turn.communicator->Finish(std::chrono::steady_clock::now()).ok();
  }
  const absl::Status rest = ComeToRest(turn);
  if (result.status.ok()) result.status = rest;
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
  result.statistics = ToProto(statistics, seconds.count());
  {
    absl::MutexLock lock(&mu_);
    running_ = nullptr;
    turn.job = nullptr;  // whoever hears that it is done may give its memory to another
  }
  turn.done(result);
}

absl::Status Engine::Compute(Turn& turn, RingStatistics& statistics) {
  const RankAssignment& assignment = turn.job->assignment;
  const RingOptions options = {
      .scale = Scale(assignment.spec),
      .block = options_.block == nullptr ? &CpuBlock() : options_.block.get(),
      .lse_without_sinks = assignment.lse_without_sinks,
      .exchange_deadline = options_.exchange_deadline,
      .on_step = [&](int step) {
        spdlog::debug("step={}/{} job={} request={} rank={}", step, assignment.plan.steps.size(),
                      assignment.plan.job, assignment.request_id, assignment.plan.rank);
      }};
  const ShardFormat format = MakeFormat(assignment.spec);
  const c10::Device device(options_.device);
  try {
    if (assignment.pass.backward) {
      return RunRingBackward({assignment.plan, assignment.gradients_to, assignment.gradients_from},
                             format, MakeBackwardTensors(turn.job, device), options,
                             *turn.communicator, turn.progress, statistics);
    }
    return RunRing(assignment.plan, format, MakeTensors(turn.job, device), options,
                   *turn.communicator, turn.progress, statistics);
  } catch (const std::exception& error) {
    // The exchanges of this job may be half done: nobody can use this communicator any more.
    const absl::Status status = absl::InternalError(error.what());
    turn.communicator->Abort(status);
    return status;
  }
}

// Also after a failure: what was begun before it may still read and write the job's memory. As long
// as that takes the device computes, for all that the coordinator is to know.
absl::Status Engine::ComeToRest(Turn& turn) {
  const c10::Device device(options_.device);
  turn.progress.computing = true;
  absl::Status status;
  try {
    c10::impl::VirtualGuardImpl(device.type()).getStream(device).synchronize();
  } catch (const std::exception& error) {
    status = absl::InternalError(error.what());
    options_.device_lost(status);
  }
  turn.progress.computing = false;
  return status;
}

// An idle worker holds no finished job's memory.
void Engine::GiveMemoryBack() const {
  malloc_trim(0);
  const c10::DeviceType device = c10::Device(options_.device).type();
  if (device == c10::kCPU) return;
  try {
    c10::getDeviceAllocator(device)->emptyCache();
  } catch (const std::exception& error) {
    options_.device_lost(absl::InternalError(error.what()));
  }
}

const char* LibTorchVersion() { return TORCH_VERSION; }

}  // namespace ringserve
