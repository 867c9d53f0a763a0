#include <utility>

#include "client/torch/dispatcher.h"
#include "client/torch/service.h"
#include "ringserve/torch.h"

namespace ringserve {

struct ContextParallel::Entered {
  EnteredScope scope;
};

ContextParallel::ContextParallel(std::shared_ptr<Client> client, ContextParallelOptions options)
    : service_(std::make_shared<AttentionService>(std::move(client), std::move(options))),
      entered_(new Entered{EnteredScope(service_)}) {}

ContextParallel::~ContextParallel() = default;

int64_t ContextParallel::calls() const { return service_->calls(); }

int64_t ContextParallel::backward_calls() const { return service_->backward_calls(); }

std::optional<v1::Statistics> ContextParallel::statistics() const { return service_->statistics(); }

std::optional<v1::Statistics> ContextParallel::backward_statistics() const {
  return service_->backward_statistics();
}

std::shared_ptr<const ServedCalls> EnableContextParallelDispatcher(std::shared_ptr<Client> client,
                                                                   ContextParallelOptions options) {
  auto service = std::make_shared<AttentionService>(std::move(client), std::move(options));
  PushProcessService(service);
  return service;
}

void DisableContextParallelDispatcher() {
  if (!PopProcessService()) {
    throw ContextParallelError(
        absl::FailedPreconditionError("the dispatcher of context parallelism is not enabled"));
  }
}

}  // namespace ringserve
