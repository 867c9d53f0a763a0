#include "client/ringctl/selftest_faults.h"

#include <signal.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <string>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "client/ringctl/load_case.h"
#include "client/ringctl/load_run.h"

namespace ringserve {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr int kFaultCases = 6;
constexpr int kFaultConcurrency = 2;
constexpr int kAfterwards = 4;                       // requests once the cluster is whole
constexpr milliseconds kRequestDeadline{60'000};     // of a request
constexpr milliseconds kNewWorkerPatience{120'000};  // for a new worker, which loads its libraries
constexpr milliseconds kLongestRun{240'000};         // of a run, however it goes
constexpr absl::Duration kAskAgain = absl::Milliseconds(2);

// Asks until the answer is as wanted.
bool Await(Client& client, milliseconds patience,
           const std::function<bool(const v1::GetClusterResponse&)>& wanted) {
  const Clock::time_point deadline = Clock::now() + patience;
  while (Clock::now() < deadline) {
    const absl::StatusOr<v1::GetClusterResponse> cluster = client.GetCluster();
    if (cluster.ok() && wanted(*cluster)) return true;
    absl::SleepFor(kAskAgain);
  }
  return false;
}

class FaultRun {
 public:
  FaultRun(Client& client, int workers, uint64_t seed)
      : client_(client), workers_(workers), seed_(seed) {
    for (v1::AttendHeader& header : MixedHeaders(kFaultCases, workers, seed)) {
      header.mutable_options()->set_workers(workers);
      cases_.push_back(*MakeLoadCase(header, seed));
      AddRightRows(cases_.back(), seed);
    }
  }

  CaseResult Run(bool retried) {
    const Clock::time_point begin = Clock::now();
    CaseResult result = {.workers = workers_, .group = kFaults};
    result.details["retried"] = retried;
    std::atomic<bool> whole{false};
    std::string trouble;
    std::thread killer([&] {
      trouble = KillAndAwait();
      whole = true;
    });
    LoadRunOptions options = {
        .concurrency = kFaultConcurrency,
        .duration = kLongestRun,
        .deadline = retried ? kNewWorkerPatience + kRequestDeadline : kRequestDeadline,
        .max_attempts = retried ? 10 : 1,
        .wait_for_ready = retried ? kNewWorkerPatience : milliseconds(0),
        .seed = seed_,
        .stopped = [&] { return whole.load(); }};
    const LoadStatistics during = RunLoad(client_, cases_, options);
    killer.join();
    const LoadStatistics after =
        RunLoad(client_, cases_,
                {.requests = kAfterwards, .deadline = kRequestDeadline, .max_attempts = 1});
    if (trouble.empty()) trouble = retried ? WrongWhenRetried(during) : WrongWhenNot(during);
    if (trouble.empty() && after.ok != kAfterwards) {
      trouble = absl::StrCat("afterwards ", Counts(after));
    }
    result.details["during"] = Counts(during);
    result.details["afterwards"] = Counts(after);
    if (during.wrong + after.wrong > 0) result.worst = 2;
    if (!trouble.empty()) result.outcome = Outcome::kFailed;
    result.why = std::move(trouble);
    result.seconds = std::chrono::duration<double>(Clock::now() - begin).count();
    return result;
  }

 private:
  // Empty: a worker was killed while requests ran, and another is in its place.
  std::string KillAndAwait() {
    int64_t victim = 0;
    const bool busy =
        Await(client_, kNewWorkerPatience, [&](const v1::GetClusterResponse& cluster) {
          if (cluster.workers_size() != workers_) return false;
          const v1::Worker& worker = cluster.workers(workers_ - 1);
          victim = worker.pid();
          return victim > 1 && worker.job() != 0;
        });
    if (!busy) return "no worker was seen at work";
    if (kill(static_cast<pid_t>(victim), SIGKILL) != 0) {
      return absl::StrCat("cannot kill the worker of pid ", victim);
    }
    const bool whole =
        Await(client_, kNewWorkerPatience, [&](const v1::GetClusterResponse& cluster) {
          for (const v1::Worker& worker : cluster.workers()) {
            if (worker.pid() == victim) return false;
          }
          return cluster.workers_size() == workers_ && !cluster.epoch().empty();
        });
    if (!whole)
      return absl::StrCat("no worker in place of the killed one after ",
                          kNewWorkerPatience.count() / 1000, " s");
    return "";
  }

  static std::string Counts(const LoadStatistics& load) {
    std::string text = absl::StrCat("right ", load.ok, ", retried ", load.retried, ", failed ",
                                    load.failed, ", wrong ", load.wrong);
    if (!load.last_failure.ok()) {
      absl::StrAppend(&text, "; last failure ", load.last_failure.ToString());
    }
    if (load.wrong > 0) absl::StrAppend(&text, "; first wrong ", load.first_wrong);
    return text;
  }

  static std::string WrongWhenNot(const LoadStatistics& load) {
    int64_t unavailable = 0;
    const auto found = load.failures.find(absl::StatusCode::kUnavailable);
    if (found != load.failures.end()) unavailable = found->second;
    if (load.wrong == 0 && unavailable > 0 && unavailable == load.failed) return "";
    return absl::StrCat("requests must be right or fail as UNAVAILABLE, and some must fail: ",
                        Counts(load));
  }

  static std::string WrongWhenRetried(const LoadStatistics& load) {
    if (load.wrong == 0 && load.failed == 0 && load.retried > 0) return "";
    return absl::StrCat("requests must all be right, and some retried: ", Counts(load));
  }

  Client& client_;
  const int workers_;
  const uint64_t seed_;
  std::vector<LoadCase> cases_;
};

}  // namespace

std::vector<CaseResult> RunFaultCases(Client& client, int workers, uint64_t seed) {
  FaultRun run(client, workers, seed);
  std::vector<CaseResult> results;
  for (const bool retried : {false, true}) results.push_back(run.Run(retried));
  return results;
}

}  // namespace ringserve
