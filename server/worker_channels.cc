#include "server/worker_channels.h"

#include <grpcpp/create_channel.h>

#include "proto/transport.h"

namespace ringserve {

std::shared_ptr<grpc::Channel> WorkerChannels::Get(const std::string& worker_id,
                                                   const std::string& address) {
  absl::MutexLock lock(&mu_);
  std::shared_ptr<grpc::Channel>& channel = channels_[worker_id];
  if (channel == nullptr) {
    channel = grpc::CreateCustomChannel(address, credentials_, MakeChannelArguments());
  }
  return channel;
}

void WorkerChannels::Keep(const std::set<std::string>& worker_ids) {
  absl::MutexLock lock(&mu_);
  for (auto channel = channels_.begin(); channel != channels_.end();) {
    channel = worker_ids.count(channel->first) > 0 ? std::next(channel) : channels_.erase(channel);
  }
}

}  // namespace ringserve
