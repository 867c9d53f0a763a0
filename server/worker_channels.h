// Connections to the workers' Shard service: one per worker, shared by all jobs.
#pragma once

#include <chrono>
#include <map>
#include <memory>
#include <set>
#include <string>

#include <grpcpp/channel.h>
#include <grpcpp/security/credentials.h>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace ringserve {

// Thread safe.
class WorkerChannels {
 public:
  explicit WorkerChannels(std::shared_ptr<grpc::ChannelCredentials> credentials)
      : credentials_(std::move(credentials)) {}

  // By worker and not by address: one that came back at an old address gets a connection that
  // remembers no failures.
  std::shared_ptr<grpc::Channel> Get(const std::string& worker_id, const std::string& address);

  // Closes the connections of all others, as soon as no call uses them.
  void Keep(const std::set<std::string>& worker_ids);

 private:
  const std::shared_ptr<grpc::ChannelCredentials> credentials_;
  absl::Mutex mu_;
  std::map<std::string, std::shared_ptr<grpc::Channel>> channels_ ABSL_GUARDED_BY(mu_);
};

}  // namespace ringserve
