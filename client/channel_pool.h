// Connections to one server, each lent to one call at a time. A connection of its own lets a call
// that ends early close it, which frees the bytes that the transport still refers to, and disturbs
// nobody else.
#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include <grpcpp/channel.h>
#include <grpcpp/security/credentials.h>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"

namespace ringserve {

// Thread safe.
class ChannelPool {
 public:
  ChannelPool(std::string target, std::shared_ptr<grpc::ChannelCredentials> credentials);

  // A channel that nobody else uses. One that failed to connect before is never lent again: a new
  // one tries at once, whatever gRPC's back-off.
  std::shared_ptr<grpc::Channel> Take();

  // Gives a channel back for later calls. One that is not given back closes with its last
  // reference.
  void Return(std::shared_ptr<grpc::Channel> channel);

 private:
  const std::string target_;
  const std::shared_ptr<grpc::ChannelCredentials> credentials_;
  absl::Mutex mutex_;
  std::vector<std::shared_ptr<grpc::Channel>> idle_ ABSL_GUARDED_BY(mutex_);
};

// Blocks until the first try to connect has ended; true iff there is a connection now. False leaves
// the channel failed (a call on it returns the reason at once) or, after `timeout`, still trying.
bool AwaitConnection(grpc::Channel& channel, std::chrono::milliseconds timeout);

}  // namespace ringserve
