#include "tests/worker/attention/local_ring.h"

#include <chrono>
#include <ctime>
#include <thread>

#include <ATen/Parallel.h>
#include <c10/core/InferenceMode.h>

#include "proto/tensor_shape.h"
#include "tests/support/memory_communicator.h"
#include "tests/support/wait.h"
#include "tests/worker/attention/counted_memory.h"
#include "tests/worker/attention/local_jobs.h"
#include "worker/rank_tensors.h"

namespace ringserve::test {
namespace {

double ThreadSeconds() {
  timespec now = {};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

void RunRank(const std::shared_ptr<RankJob>& job, const LocalRingOptions& options,
             Communicator& communicator, RankOutcome& outcome) {
  at::set_num_threads(options.threads);
  const c10::InferenceMode inference;
  RankAssignment& assignment = job->assignment;
  if (options.alter) options.alter(assignment);
  RingProgress progress;
  RingOptions ring = {.scale = Scale(assignment.spec),
                      .block = options.block,
                      .lse_without_sinks = assignment.lse_without_sinks,
                      .exchange_deadline = kPatience};
  if (options.on_step) {
    ring.on_step = [&](int step) { options.on_step(assignment.plan.rank, step, progress); };
  }
  const RankTensors tensors = MakeTensors(job);
  ResetMemoryCount();
  const auto begin = std::chrono::steady_clock::now();
  const double processor_begin = ThreadSeconds();
  outcome.status = RunRing(assignment.plan, MakeFormat(assignment.spec), tensors, ring,
                           communicator, progress, outcome.statistics);
  outcome.processor_seconds = ThreadSeconds() - processor_begin;
  outcome.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  outcome.most_memory_held = MostMemoryHeld();
}

}  // namespace

bool Outcome::ok() const { return status().ok(); }

absl::Status Outcome::status() const {
  for (const RankOutcome& rank : ranks) {
    if (!rank.status.ok()) return rank.status;
  }
  return absl::OkStatus();
}

Outcome RunLocally(const Plan& plan, const Inputs& inputs, const LocalRingOptions& options,
                   const std::vector<Communicator*>& communicators) {
  const Jobs jobs = MakeJobs(plan, inputs);

  std::vector<std::unique_ptr<MemoryCommunicator>> connected;
  std::vector<Communicator*> members = communicators;
  if (members.empty()) {
    connected = MemoryCommunicator::Connect(plan.ranks());
    for (const auto& communicator : connected) members.push_back(communicator.get());
  }
  Outcome outcome;
  outcome.ranks.resize(plan.ranks());
  std::vector<std::thread> threads;
  for (int rank = 0; rank < plan.ranks(); ++rank) {
    threads.emplace_back([&, rank] {
      RunRank(jobs[rank], options, *members[plan.ranks() - 1 - rank], outcome.ranks[rank]);
    });
  }
  for (std::thread& thread : threads) thread.join();
  outcome.out = Gather(plan, v1::TENSOR_ID_OUT, jobs);
  outcome.lse = Gather(plan, v1::TENSOR_ID_LSE, jobs);
  return outcome;
}

}  // namespace ringserve::test
