#include "server/planner.h"

#include <algorithm>
#include <utility>

namespace ringserve {

Planner::Planner(v1::Measurements measurements, Done done)
    : measurements_(std::move(measurements)), done_(std::move(done)), thread_([this] { Run(); }) {}

Planner::~Planner() {
  {
    absl::MutexLock lock(&mu_);
    stopping_ = true;
  }
  thread_.join();
}

void Planner::Ask(Admission::PlanRequest request) {
  absl::MutexLock lock(&mu_);
  requests_.push_back(std::move(request));
}

void Planner::Forget(Admission::JobId job) {
  absl::MutexLock lock(&mu_);
  requests_.erase(std::remove_if(requests_.begin(), requests_.end(),
                                 [&](const auto& request) { return request.job == job; }),
                  requests_.end());
}

void Planner::Run() {
  const auto due = [this]()
                       ABSL_SHARED_LOCKS_REQUIRED(mu_) { return stopping_ || !requests_.empty(); };
  for (;;) {
    Admission::PlanRequest request;
    {
      absl::MutexLock lock(&mu_);
      mu_.Await(absl::Condition(&due));
      if (stopping_) return;
      request = std::move(requests_.front());
      requests_.pop_front();
    }
    absl::StatusOr<Plan> plan =
        MakePlan(*request.spec, request.options, request.group, measurements_, request.pass);
    if (plan.ok()) {
      plan->spec.clear_masks();  // the bands say it all
      done_(request, std::make_shared<const Plan>(*std::move(plan)));
    } else {
      done_(request, plan.status());
    }
  }
}

}  // namespace ringserve
