#include "worker/comm/nccl_exchange.h"

#include <string>
#include <utility>

#include "worker/comm/member_names.h"

namespace ringserve {

NcclExchange::NcclExchange(std::unique_ptr<NcclLibrary> library, NcclOptions options)
    : library_(std::move(library)),
      options_(std::move(options)),
      ender_([this] { EndReleased(); }) {}

NcclExchange::~NcclExchange() {
  {
    absl::MutexLock lock(&mu_);
    stopping_ = true;
  }
  ender_.join();
}

absl::StatusOr<std::shared_ptr<Communicator>> NcclExchange::Build(const v1::Epoch& epoch,
                                                                  const EpochLine& line) {
  std::string unique_id;
  if (epoch.index() == 0) {
    absl::StatusOr<std::string> made = library_->MakeUniqueId();
    if (!made.ok()) return made.status();
    unique_id = *std::move(made);
  }
  auto communicator = std::make_unique<NcclCommunicator>(*library_, order_, epoch.index(),
                                                         MemberNames(epoch), options_, line.built);
  if (epoch.index() == 0) line.meet(unique_id);
  return std::shared_ptr<Communicator>(communicator.release(), [this](Communicator* last) {
    Release(std::unique_ptr<NcclCommunicator>(static_cast<NcclCommunicator*>(last)));
  });
}

void NcclExchange::Release(std::unique_ptr<NcclCommunicator> communicator) {
  communicator->Abort(absl::CancelledError("nobody needs the communicator any more"));
  absl::MutexLock lock(&mu_);
  released_.push_back(std::move(communicator));
}

void NcclExchange::EndReleased() {
  const auto something_to_do = [this]() ABSL_SHARED_LOCKS_REQUIRED(mu_) {
    return stopping_ || !released_.empty();
  };
  for (;;) {
    std::unique_ptr<NcclCommunicator> ended;  // without the lock
    absl::MutexLock lock(&mu_);
    mu_.Await(absl::Condition(&something_to_do));
    if (released_.empty()) return;
    ended = std::move(released_.front());
    released_.pop_front();
  }
}

}  // namespace ringserve
