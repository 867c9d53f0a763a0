#include "client/channel_pool.h"

#include <utility>

#include "proto/transport.h"

namespace ringserve {

ChannelPool::ChannelPool(std::string target, std::shared_ptr<grpc::ChannelCredentials> credentials)
    : target_(std::move(target)), credentials_(std::move(credentials)) {}

std::shared_ptr<grpc::Channel> ChannelPool::Take() {
  {
    absl::MutexLock lock(&mutex_);
    while (!idle_.empty()) {
      std::shared_ptr<grpc::Channel> channel = std::move(idle_.back());
      idle_.pop_back();
      if (channel->GetState(/*try_to_connect=*/false) == GRPC_CHANNEL_READY) return channel;
    }
  }
  return grpc::CreateCustomChannel(target_, credentials_, MakeChannelArguments());
}

void ChannelPool::Return(std::shared_ptr<grpc::Channel> channel) {
  absl::MutexLock lock(&mutex_);
  idle_.push_back(std::move(channel));
}

bool AwaitConnection(grpc::Channel& channel, std::chrono::milliseconds timeout) {
  const auto deadline = std::chrono::system_clock::now() + timeout;
  for (;;) {
    const grpc_connectivity_state state = channel.GetState(/*try_to_connect=*/true);
    if (state == GRPC_CHANNEL_READY) return true;
    if (state == GRPC_CHANNEL_TRANSIENT_FAILURE || state == GRPC_CHANNEL_SHUTDOWN) return false;
    if (!channel.WaitForStateChange(state, deadline)) return false;
  }
}

}  // namespace ringserve
