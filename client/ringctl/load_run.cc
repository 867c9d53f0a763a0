#include "client/ringctl/load_run.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "client/ringctl/format.h"
#include "client/ringctl/names.h"

namespace ringserve {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

// A server that refuses at once, or is not there, is not to be hammered.
constexpr milliseconds kPauseAfterFailure{100};
constexpr milliseconds kWatchInterval{100};

std::string Describe(const v1::AttendHeader& header) {
  const v1::AttentionSpec& spec = header.spec();
  std::string mask = "full";
  if (spec.masks_size() > 0) mask = spec.masks(0).bottom_right() ? "bottom-right" : "causal";
  return absl::StrCat("batch ", spec.batch(), ", heads ", spec.q_heads(), ":", spec.kv_heads(),
                      ", length ", spec.q_len(), " x ", spec.kv_len(), ", dim ", spec.head_dim(),
                      ":", ValueDimOf(spec), ", ", NameOf(spec.dtype()), ", ", mask, ", ",
                      v1::TensorLayout_Name(spec.tensor_layout()), ", workers ",
                      header.options().workers());
}

std::string DescribeWrong(const LoadCase& load, const Verification& result) {
  const bool in_out = result.out.has_value() && result.out->excess() > 1;
  const Deviation& worst = in_out ? *result.out : *result.lse;
  return absl::StrCat(in_out ? "out" : "lse", " of batch row ", worst.row.batch, ", head ",
                      worst.row.head, ", query ", worst.row.query, " is ", worst.got, ", not ",
                      worst.expected, " (tolerance ", ErrorText(worst.tolerance), "): request ",
                      Describe(load.header));
}

class LoadRun {
 public:
  LoadRun(Client& client, std::span<const LoadCase> cases, const LoadRunOptions& options)
      : client_(client), cases_(cases), options_(options), begin_(Clock::now()) {}

  LoadStatistics Run() {
    std::vector<std::thread> senders;
    senders.reserve(options_.concurrency);
    for (int i = 0; i < options_.concurrency; ++i) senders.emplace_back([this, i] { Send(i); });
    Watch();
    for (std::thread& sender : senders) sender.join();
    absl::MutexLock lock(&mu_);
    return statistics_;
  }

 private:
  bool Over() const {
    return options_.stopped() ||
           (options_.duration.has_value() && Clock::now() >= begin_ + *options_.duration);
  }

  void Send(int sender) {
    std::seed_seq seeds{options_.seed, static_cast<uint64_t>(sender)};
    std::mt19937_64 random(seeds);
    std::uniform_int_distribution<size_t> any(0, cases_.size() - 1);
    while (!Over() && (!options_.requests.has_value() || begun_++ < *options_.requests)) {
      const LoadStatistics one = SendOne(cases_[any(random)]);
      {
        absl::MutexLock lock(&mu_);
        statistics_.Add(one);
      }
      if (one.failed > 0) absl::SleepFor(absl::FromChrono(kPauseAfterFailure));
    }
    absl::MutexLock lock(&mu_);
    ++ended_;
  }

  LoadStatistics SendOne(const LoadCase& load) {
    LoadStatistics one;
    const TensorBytes bytes = *BytesOf(load.header.spec());
    // No number that was never written may look like one that is right.
    std::vector<std::byte> out(bytes.out, std::byte{0xff});
    std::vector<std::byte> lse(load.header.options().return_lse() ? bytes.lse : 0, std::byte{0xff});
    CallOptions call = {.deadline = options_.deadline,
                        .max_attempts = options_.max_attempts,
                        .wait_for_ready = options_.wait_for_ready};
    call.on_retry = [&](int attempt, const absl::Status& why) { one.retried = 1; };
    const Clock::time_point begin = Clock::now();
    const absl::StatusOr<AttendResult> result =
        client_.Attend(load.header, load.inputs(), {out, lse}, call);
    const std::chrono::duration<double> seconds = Clock::now() - begin;
    if (!result.ok()) {
      one.failed = 1;
      one.failures[result.status().code()] = 1;
      one.last_failure = result.status();
      return one;
    }
    one.seconds.push_back(seconds.count());
    one.bytes = bytes.inputs() + out.size() + lse.size();
    const Verification verification = load.Check(out, lse);
    if (verification.ok()) {
      one.ok = 1;
    } else {
      one.wrong = 1;
      one.first_wrong = DescribeWrong(load, verification);
    }
    return one;
  }

  // Reports until all senders have ended.
  void Watch() {
    Clock::time_point next = begin_ + options_.progress_interval;
    const auto all_ended = [this]() ABSL_SHARED_LOCKS_REQUIRED(mu_) {
      return ended_ == options_.concurrency;
    };
    absl::MutexLock lock(&mu_);
    while (!mu_.AwaitWithTimeout(absl::Condition(&all_ended), absl::FromChrono(kWatchInterval))) {
      if (!options_.on_progress || Clock::now() < next) continue;
      next += options_.progress_interval;
      options_.on_progress(std::chrono::duration_cast<milliseconds>(Clock::now() - begin_),
                           statistics_);
    }
  }

  Client& client_;
  const std::span<const LoadCase> cases_;
  const LoadRunOptions& options_;
  const Clock::time_point begin_;
  std::atomic<int64_t> begun_{0};
  absl::Mutex mu_;
  LoadStatistics statistics_ ABSL_GUARDED_BY(mu_);
  int ended_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace

LoadStatistics RunLoad(Client& client, std::span<const LoadCase> cases,
                       const LoadRunOptions& options) {
  return LoadRun(client, cases, options).Run();
}

}  // namespace ringserve
