// A worker's end of Cluster.Join, with the test's hands on every message.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include <grpcpp/grpcpp.h>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "proto/status.h"
#include "proto/transport.h"
#include "ringserve/v1/cluster.grpc.pb.h"
#include "tests/server/make_hello.h"
#include "tests/support/wait.h"

namespace ringserve::test {

class FakeWorker {
 public:
  struct Seen {
    std::vector<v1::CoordinatorMessage> messages;
    int alive = 0;
    bool over = false;
    absl::Status status;  // once over
  };

  FakeWorker(const std::string& coordinator,
             const std::shared_ptr<grpc::ChannelCredentials>& credentials)
      : stub_(v1::Cluster::NewStub(
            grpc::CreateCustomChannel(coordinator, credentials, MakeChannelArguments()))),
        stream_(stub_->Join(&context_)),
        reader_([this] { Read(); }) {}

  explicit FakeWorker(const std::string& coordinator)
      : FakeWorker(coordinator, grpc::InsecureChannelCredentials()) {}

  ~FakeWorker() {
    Break();
    reader_.join();
  }

  bool Send(const v1::WorkerMessage& message) { return stream_->Write(message); }
  bool Hello(const v1::Hello& hello) {
    v1::WorkerMessage message;
    *message.mutable_hello() = hello;
    return Send(message);
  }
  void HalfClose() { stream_->WritesDone(); }
  void Break() { context_.TryCancel(); }

  bool Await(const std::function<bool(const Seen&)>& condition) {
    const auto holds = [&]() ABSL_SHARED_LOCKS_REQUIRED(mu_) { return condition(seen_); };
    absl::MutexLock lock(&mu_);
    return mu_.AwaitWithTimeout(absl::Condition(&holds), absl::FromChrono(kPatience));
  }

  // How the call ended; DEADLINE_EXCEEDED where it did not.
  absl::Status AwaitEnd() {
    if (!Await([](const Seen& seen) { return seen.over; })) {
      return absl::DeadlineExceededError("the call does not end");
    }
    absl::MutexLock lock(&mu_);
    return seen_.status;
  }

  // The n-th epoch that was sent, from 0; without an id if it did not come.
  v1::Epoch AwaitEpoch(size_t n) {
    v1::Epoch epoch;
    Await([&](const Seen& seen) {
      size_t count = 0;
      for (const v1::CoordinatorMessage& message : seen.messages) {
        if (message.has_epoch() && count++ == n) epoch = message.epoch();
      }
      return count > n;
    });
    return epoch;
  }

 private:
  void Read() {
    v1::CoordinatorMessage message;
    while (stream_->Read(&message)) {
      absl::MutexLock lock(&mu_);
      if (message.alive()) {
        ++seen_.alive;
      } else {
        seen_.messages.push_back(message);
      }
    }
    const absl::Status status = FromGrpc(stream_->Finish());
    absl::MutexLock lock(&mu_);
    seen_.over = true;
    seen_.status = status;
  }

  const std::unique_ptr<v1::Cluster::Stub> stub_;
  grpc::ClientContext context_;
  const std::unique_ptr<grpc::ClientReaderWriter<v1::WorkerMessage, v1::CoordinatorMessage>>
      stream_;
  absl::Mutex mu_;
  Seen seen_ ABSL_GUARDED_BY(mu_);
  std::thread reader_;
};

}  // namespace ringserve::test
