// Keeps this worker a member of the coordinator's group: joins, sends heartbeats, obeys epochs and
// fences, joins anew when the membership has ended. Decides nothing about jobs: when a membership
// ends, everything that it brought ends with it.
//
// One thread of its own does all of it, apart from the engine's: a long tile is no silence.
#pragma once

#include <chrono>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <variant>

#include <grpcpp/security/credentials.h>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "ringserve/v1/cluster.pb.h"
#include "worker/join_stream.h"
#include "worker/seats.h"

namespace ringserve {

struct JoinOptions {
  std::string coordinator;  // HOST:PORT or unix:PATH
  std::shared_ptr<grpc::ChannelCredentials> credentials;
  v1::Hello hello;
  std::chrono::milliseconds drain{30'000};  // how long a leaving worker waits for its jobs
  std::chrono::milliseconds welcome_deadline{5'000};
  std::chrono::milliseconds slowest_retry{2'000};
};

class JoinClient {
 public:
  // All are called on the client's thread, but for `progress` see Engine::Progress.
  struct Hooks {
    std::function<v1::Heartbeat()> progress;
    std::function<void(bool joined)> on_joined;
    // The membership, or one epoch of it, has ended: so do its jobs.
    std::function<void(const absl::Status& why)> drop_all;
    std::function<void(const std::string& epoch, const absl::Status& why)> drop_epoch;
    // So does this job. True: something of it is still here; asked again until it is not.
    std::function<bool(uint64_t job, const absl::Status& why)> recall;
  };

  // Everything named outlives the client. Begins to join at once.
  JoinClient(JoinOptions options, Seats& seats, Hooks hooks);

  ~JoinClient() { Stop(); }

  // Ends the membership at once, if it has not ended yet. Not two threads at a time.
  void Stop();

  // This epoch's communicator has failed. Any thread, never blocks.
  void EpochBroken(const std::string& epoch, const absl::Status& why);

  // Asks to go in good order: unfinished jobs may end, for at most options.drain. Any thread.
  void Leave();

  // True as soon as the worker has left; false when `timeout` passed first.
  bool WaitUntilLeft(std::chrono::milliseconds timeout);

  // Once it has left: OK if nothing was unfinished, else what became of it.
  absl::Status farewell() const;

 private:
  using Clock = std::chrono::steady_clock;
  struct Broken {
    std::string epoch;
    absl::Status why;
  };
  struct Ended {
    absl::Status status;
  };
  struct Met {
    std::string epoch, token;
  };
  struct Built {
    std::string epoch;
    absl::Status status;
  };
  struct Leaving {};
  struct Stopping {};
  using Event = std::variant<v1::CoordinatorMessage, Broken, Met, Built, Ended, Leaving, Stopping>;
  // Lives as long as anything that may still put an event in: an epoch's line outlives the client
  // where its communicator does.
  struct Inbox {
    absl::Mutex mu;
    std::deque<Event> events ABSL_GUARDED_BY(mu);

    void Give(Event event) {
      absl::MutexLock lock(&mu);
      events.push_back(std::move(event));
    }
  };
  struct Stay;  // one membership, from the dial to its end

  void Loop();
  absl::Status StayJoined();
  void Obey(const v1::CoordinatorMessage& message, Stay& stay);
  void Enter(const v1::Epoch& epoch, Stay& stay);
  void Tell(const Met& met, Stay& stay);
  void Tell(const Built& built, Stay& stay);
  void Break(const Broken& broken, Stay& stay);
  bool Recall(uint64_t job, Stay& stay);
  void Tick(Stay& stay);
  std::optional<Event> Next(Clock::time_point until);
  bool Going() const { return leaving_ || stopping_; }

  const JoinOptions options_;
  Seats& seats_;
  const Hooks hooks_;

  // The client's thread's own.
  bool leaving_ = false;
  bool stopping_ = false;

  const std::shared_ptr<Inbox> inbox_ = std::make_shared<Inbox>();
  mutable absl::Mutex mu_;
  bool left_ ABSL_GUARDED_BY(mu_) = false;
  absl::Status farewell_ ABSL_GUARDED_BY(mu_);
  std::thread thread_;
};

}  // namespace ringserve
