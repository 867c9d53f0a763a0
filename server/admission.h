// Who gets in: a bounded queue, first come first served, in front of a ledger of every worker's
// memory. A job is planned on the present group, placed on the least loaded workers, and what its
// plan needs is taken from all of them at once, or it stays queued. Pure: events in, decisions out.
// A plan may take long to make, so it is asked for and comes back as an event.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/plan/plan.h"

namespace ringserve {

struct AdmissionOptions {
  int64_t max_queued_jobs = 256;
  uint64_t max_queued_bytes = 64 << 20;  // of memory, for the jobs' specs
  // Admitted and not ended: each holds a call to every worker of its own.
  int max_jobs_per_worker = 64;
};

class Admission {
 public:
  using JobId = uint64_t;
  using Spec = std::shared_ptr<const v1::AttentionSpec>;

  // A worker that takes new jobs.
  struct Capacity {
    std::string worker_id;  // never another worker's again
    uint64_t memory_bytes = 0;
    bool suspect = false;  // may be gone: plans count on it, but no job is placed on it

    friend bool operator==(const Capacity&, const Capacity&) = default;
  };
  // MakePlan is to be called with this, and Planned with what it says.
  struct PlanRequest {
    JobId job = 0;
    uint64_t generation = 0;
    Spec spec;
    v1::AttentionOptions options;
    Pass pass;
    Group group;
  };
  struct Admitted {
    JobId job = 0;
    std::shared_ptr<const Plan> plan;
    std::vector<std::string> workers;  // by rank
  };
  struct Refused {
    JobId job = 0;
    absl::Status status;
    bool retry = false;  // another attempt is worth it
  };
  struct Decisions {
    std::vector<PlanRequest> to_plan;
    std::vector<Admitted> admitted;
    std::vector<Refused> refused;
  };

  explicit Admission(AdmissionOptions options) : options_(options) {}

  // A new job; `spec` and `options` are valid for `pass`. It is refused with RESOURCE_EXHAUSTED
  // (retry) where the queue is full; later with MakePlan's statuses where it has no plan.
  Decisions Submit(JobId job, Spec spec, const v1::AttentionOptions& options, Pass pass = {});

  Decisions Planned(JobId job, uint64_t generation,
                    const absl::StatusOr<std::shared_ptr<const Plan>>& plan);

  // The workers that take new jobs from now on, the preferred first. Queued jobs that ask for more
  // workers than are left are refused with UNAVAILABLE (retry); the others are planned anew.
  Decisions SetWorkers(std::vector<Capacity> workers);

  // The job leaves the queue, or gives back what was reserved for it. Nothing if it has ended.
  Decisions End(JobId job);

  // What a plan may use: the memory of the smallest worker.
  const Group& group() const { return group_; }
  int queued() const { return static_cast<int>(queue_.size()); }
  int admitted() const { return static_cast<int>(admitted_.size()); }
  uint64_t Reserved(const std::string& worker_id) const;

 private:
  struct Waiting {
    JobId job = 0;
    Spec spec;
    uint64_t spec_bytes = 0;
    v1::AttentionOptions options;
    Pass pass;
    uint64_t asked = 0;                // the generation it is being planned for, 0: it is not
    std::shared_ptr<const Plan> plan;  // only the first in the queue keeps it
    uint64_t planned = 0;              // its generation
  };
  struct Load {
    int jobs = 0;
    uint64_t bytes = 0;
  };
  struct Reservation {
    std::vector<std::string> workers;
    std::shared_ptr<const Plan> plan;
  };
  using Queue = std::deque<Waiting>;

  Queue::iterator Find(JobId job);
  Queue::iterator Remove(const Queue::iterator& waiting);
  void Ask(Waiting& waiting, Decisions& decisions);
  std::optional<std::vector<std::string>> Place(const Plan& plan) const;
  void Admit(Decisions& decisions);

  const AdmissionOptions options_;
  std::vector<Capacity> workers_;
  Group group_;
  uint64_t generation_ = 1;  // of the workers
  Queue queue_;
  uint64_t queued_bytes_ = 0;
  std::map<JobId, Reservation> admitted_;
  std::map<std::string, Load> loads_;  // of every worker with an admitted job
};

}  // namespace ringserve
