// Makes the plans that admission asks for, in order, on a thread of its own: one may take long
// where there are many batch rows with masks of their own, or many workers.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "server/admission.h"

namespace ringserve {

class Planner {
 public:
  using Done = std::function<void(const Admission::PlanRequest& request,
                                  absl::StatusOr<std::shared_ptr<const Plan>> plan)>;

  // `done` is called on the planner's thread, once for every request that is not forgotten. The
  // plan's spec is without its masks.
  Planner(v1::Measurements measurements, Done done);
  ~Planner();  // after the plan in work; forgets the others

  void Ask(Admission::PlanRequest request);

  // Nobody needs a plan for this job any more.
  void Forget(Admission::JobId job);

 private:
  void Run();

  const v1::Measurements measurements_;
  const Done done_;
  absl::Mutex mu_;
  std::deque<Admission::PlanRequest> requests_ ABSL_GUARDED_BY(mu_);
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::thread thread_;
};

}  // namespace ringserve
