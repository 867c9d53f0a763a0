// A coordinator that does as the test says: the Cluster service for real, on a port of its own,
// with the test's hands on every message.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <grpcpp/grpcpp.h>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "ringserve/v1/cluster.grpc.pb.h"
#include "tests/support/wait.h"

namespace ringserve::test {

// One worker's membership: what it has sent, and a way to answer.
class Member : public grpc::ServerBidiReactor<v1::WorkerMessage, v1::CoordinatorMessage>,
               public std::enable_shared_from_this<Member> {
 public:
  struct Seen {
    std::vector<v1::WorkerMessage> messages;
    int heartbeats = 0;
    v1::Heartbeat heartbeat;  // the last one
    bool over = false;
  };

  // Waits until `condition` holds of what the worker has sent.
  bool Await(const std::function<bool(const Seen&)>& condition) {
    const auto holds = [&]() ABSL_SHARED_LOCKS_REQUIRED(mu_) { return condition(seen_); };
    absl::MutexLock lock(&mu_);
    return mu_.AwaitWithTimeout(absl::Condition(&holds), absl::FromChrono(kPatience));
  }

  v1::Hello hello() {
    Await([](const Seen& seen) { return !seen.messages.empty() || seen.over; });
    absl::MutexLock lock(&mu_);
    return seen_.messages.empty() ? v1::Hello() : seen_.messages[0].hello();
  }

  void Send(v1::CoordinatorMessage message) {
    absl::MutexLock lock(&mu_);
    outbox_.push_back(std::move(message));
    WriteLocked();
  }

  void Welcome(const std::string& id, int interval_ms = 20, int lost_after_ms = 1'000) {
    v1::CoordinatorMessage message;
    message.mutable_welcome()->set_worker_id(id);
    message.mutable_welcome()->set_heartbeat_interval_ms(interval_ms);
    message.mutable_welcome()->set_lost_after_ms(lost_after_ms);
    Send(message);
  }

  void SendEpoch(const std::string& id, const std::vector<std::string>& addresses, int index) {
    v1::CoordinatorMessage message;
    message.mutable_epoch()->set_id(id);
    message.mutable_epoch()->set_index(index);
    for (const std::string& address : addresses) {
      message.mutable_epoch()->add_members()->set_address(address);
    }
    Send(message);
  }

  void Fence(const std::string& epoch) {
    v1::CoordinatorMessage message;
    message.set_fence_epoch(epoch);
    Send(message);
  }

  void Meet(const std::string& epoch, const std::string& token) {
    v1::CoordinatorMessage message;
    message.mutable_rendezvous()->set_epoch(epoch);
    message.mutable_rendezvous()->set_token(token);
    Send(message);
  }

  void Recall(uint64_t job) {
    v1::CoordinatorMessage message;
    message.set_recall_job(job);
    Send(message);
  }

  bool AwaitEpochReady(const std::string& id) {
    return Await([&](const Seen& seen) {
      for (const auto& message : seen.messages) {
        if (message.epoch_ready() == id) return true;
      }
      return false;
    });
  }

  // From now on heartbeats stay without an answer.
  void FallSilent() {
    absl::MutexLock lock(&mu_);
    silent_ = true;
  }

  void End(const grpc::Status& status) {
    absl::MutexLock lock(&mu_);
    EndLocked(status);
  }

  void Begin(std::shared_ptr<Member> self) {
    self_ = std::move(self);
    StartRead(&incoming_);
  }

  void OnReadDone(bool ok) override {
    absl::MutexLock lock(&mu_);
    if (!ok) {
      seen_.over = true;
      EndLocked(grpc::Status::OK);
      return;
    }
    if (incoming_.has_heartbeat()) {
      ++seen_.heartbeats;
      seen_.heartbeat = incoming_.heartbeat();
      if (!silent_) {
        outbox_.emplace_back().set_alive(true);
        WriteLocked();
      }
    } else {
      seen_.messages.push_back(incoming_);
    }
    StartRead(&incoming_);
  }

  void OnWriteDone(bool ok) override {
    absl::MutexLock lock(&mu_);
    writing_ = false;
    outbox_.pop_front();
    if (ended_.has_value()) {
      Finish(*ended_);
    } else if (ok) {
      WriteLocked();
    }
  }

  void OnDone() override {
    const std::shared_ptr<Member> self = std::move(self_);
    absl::MutexLock lock(&mu_);
    seen_.over = true;
  }

 private:
  void WriteLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    if (writing_ || outbox_.empty() || ended_.has_value()) return;
    writing_ = true;
    StartWrite(&outbox_.front());
  }
  void EndLocked(const grpc::Status& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    if (ended_.has_value()) return;
    ended_ = status;
    if (!writing_) Finish(status);
  }

  std::shared_ptr<Member> self_;
  v1::WorkerMessage incoming_;
  absl::Mutex mu_;
  Seen seen_ ABSL_GUARDED_BY(mu_);
  std::deque<v1::CoordinatorMessage> outbox_ ABSL_GUARDED_BY(mu_);
  bool writing_ ABSL_GUARDED_BY(mu_) = false;
  bool silent_ ABSL_GUARDED_BY(mu_) = false;
  std::optional<grpc::Status> ended_ ABSL_GUARDED_BY(mu_);
};

class FakeCoordinator : public v1::Cluster::CallbackService {
 public:
  // Listens on `address`; by default on a port of its own.
  explicit FakeCoordinator(
      const std::string& address = "127.0.0.1:0",
      std::shared_ptr<grpc::ServerCredentials> credentials = grpc::InsecureServerCredentials()) {
    int port = 0;
    grpc::ServerBuilder builder;
    builder.AddListeningPort(address, std::move(credentials), &port);
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
    address_ = "127.0.0.1:" + std::to_string(port);
  }

  ~FakeCoordinator() override {
    for (int i = 0; i < joins(); ++i) member(i).End(grpc::Status(grpc::UNAVAILABLE, "gone"));
    server_->Shutdown(std::chrono::system_clock::now() + std::chrono::seconds(1));
  }

  const std::string& address() const { return address_; }

  int joins() {
    absl::MutexLock lock(&mu_);
    return static_cast<int>(members_.size());
  }

  bool AwaitJoins(int count) {
    const auto there = [&]() ABSL_SHARED_LOCKS_REQUIRED(mu_) {
      return members_.size() >= static_cast<size_t>(count);
    };
    absl::MutexLock lock(&mu_);
    return mu_.AwaitWithTimeout(absl::Condition(&there), absl::FromChrono(kPatience));
  }

  // The i-th that joined.
  Member& member(int i) {
    absl::MutexLock lock(&mu_);
    return *members_.at(i);
  }

  grpc::ServerBidiReactor<v1::WorkerMessage, v1::CoordinatorMessage>* Join(
      grpc::CallbackServerContext*) override {
    auto member = std::make_shared<Member>();
    member->Begin(member);
    absl::MutexLock lock(&mu_);
    members_.push_back(member);
    return member.get();
  }

 private:
  absl::Mutex mu_;
  std::vector<std::shared_ptr<Member>> members_ ABSL_GUARDED_BY(mu_);
  std::unique_ptr<grpc::Server> server_;
  std::string address_;
};

}  // namespace ringserve::test
