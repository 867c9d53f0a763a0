#include "client/ringctl/join_watch.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <utility>

#include "absl/time/time.h"

namespace ringserve {
namespace {

constexpr absl::Duration kInterval = absl::Milliseconds(50);

}  // namespace

JoinWatch::JoinWatch(std::unique_ptr<Client> client)
    : client_(std::move(client)),
      event_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
      thread_([this] { Loop(); }) {}

JoinWatch::~JoinWatch() {
  {
    absl::MutexLock lock(&mu_);
    ending_ = true;
  }
  thread_.join();
  close(event_);
}

void JoinWatch::Expect(std::set<int64_t> pids) {
  absl::MutexLock lock(&mu_);
  expected_ = std::move(pids);
  ++question_;
  answered_ = false;
  joined_ = 0;
}

bool JoinWatch::TakeAllJoined() {
  uint64_t count = 0;
  const bool told = read(event_, &count, sizeof(count)) == sizeof(count);
  absl::MutexLock lock(&mu_);
  return told && answered_;  // else a newer question has overtaken the answer
}

int JoinWatch::joined() const {
  absl::MutexLock lock(&mu_);
  return joined_;
}

void JoinWatch::Loop() {
  const auto due = [this]() ABSL_SHARED_LOCKS_REQUIRED(mu_) { return ending_ || !answered_; };
  absl::MutexLock lock(&mu_);
  for (;;) {
    mu_.Await(absl::Condition(&due));
    if (ending_) return;
    const std::set<int64_t> expected = expected_;
    const uint64_t question = question_;
    mu_.Unlock();
    const absl::StatusOr<v1::GetClusterResponse> cluster = client_->GetCluster();
    int joined = 0;
    if (cluster.ok()) {
      for (const v1::Worker& worker : cluster->workers()) joined += expected.count(worker.pid());
    }
    const bool all =
        cluster.ok() && joined == static_cast<int>(expected.size()) && !cluster->epoch().empty();
    mu_.Lock();
    if (question != question_) continue;
    joined_ = joined;
    answered_ = all;
    if (all) {
      const uint64_t one = 1;
      (void)!write(event_, &one, sizeof(one));
    } else {
      mu_.AwaitWithTimeout(absl::Condition(&ending_), kInterval);
    }
  }
}

}  // namespace ringserve
