#include "server/admission.h"

#include <algorithm>
#include <numeric>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"

namespace ringserve {
namespace {

absl::Status Full(int queued, int64_t limit) {
  return absl::ResourceExhaustedError(absl::StrCat(queued, " jobs are queued, limit ", limit));
}

// What a spec takes in memory. An empty mask travels as two bytes and is a hundred here.
uint64_t BytesOf(const v1::AttentionSpec& spec) {
  return spec.ByteSizeLong() + spec.masks_size() * sizeof(v1::Mask);
}

}  // namespace

Admission::Decisions Admission::Submit(JobId job, Spec spec, const v1::AttentionOptions& options,
                                       Pass pass) {
  Decisions decisions;
  const uint64_t bytes = BytesOf(*spec);
  // Without a queue, one job may still be looked at.
  if (queued() >= std::max<int64_t>(options_.max_queued_jobs, 1)) {
    decisions.refused.push_back({job, Full(queued(), options_.max_queued_jobs), true});
  } else if (!queue_.empty() && queued_bytes_ + bytes > options_.max_queued_bytes) {
    decisions.refused.push_back({job,
                                 absl::ResourceExhaustedError(absl::StrCat(
                                     "the headers of the ", queued(), " jobs that are queued take ",
                                     queued_bytes_, " bytes, limit ", options_.max_queued_bytes)),
                                 true});
  } else {
    queue_.push_back({.job = job,
                      .spec = std::move(spec),
                      .spec_bytes = bytes,
                      .options = options,
                      .pass = pass});
    queued_bytes_ += bytes;
    Ask(queue_.back(), decisions);
  }
  return decisions;
}

Admission::Decisions Admission::Planned(JobId job, uint64_t generation,
                                        const absl::StatusOr<std::shared_ptr<const Plan>>& plan) {
  Decisions decisions;
  const auto waiting = Find(job);
  if (waiting == queue_.end() || waiting->asked != generation) return decisions;
  waiting->asked = 0;
  if (generation != generation_) {
    Ask(*waiting, decisions);
    return decisions;
  }
  if (!plan.ok()) {
    decisions.refused.push_back({job, plan.status(), false});
    Remove(waiting);
  } else if (waiting == queue_.begin()) {
    waiting->plan = *plan;
    waiting->planned = generation;
  }
  Admit(decisions);
  if (queued() > options_.max_queued_jobs && Find(job) != queue_.end()) {
    decisions.refused.push_back({job, Full(0, options_.max_queued_jobs), true});
    Remove(Find(job));
  }
  return decisions;
}

Admission::Decisions Admission::SetWorkers(std::vector<Capacity> workers) {
  Decisions decisions;
  const int before = group_.workers;
  const bool same = std::equal(workers_.begin(), workers_.end(), workers.begin(), workers.end(),
                               [](const Capacity& a, const Capacity& b) {
                                 return std::tie(a.worker_id, a.memory_bytes) ==
                                        std::tie(b.worker_id, b.memory_bytes);
                               });
  workers_ = std::move(workers);
  if (same) {  // plans stand, but for where they may go
    Admit(decisions);
    return decisions;
  }
  ++generation_;
  group_ = {.workers = static_cast<int>(workers_.size())};
  for (const Capacity& worker : workers_) {
    if (group_.memory_bytes == 0 || worker.memory_bytes < group_.memory_bytes) {
      group_.memory_bytes = worker.memory_bytes;
    }
  }
  for (auto waiting = queue_.begin(); waiting != queue_.end();) {
    const int needed = std::max(waiting->options.workers(), 1);
    if (needed <= group_.workers || needed > before) {
      ++waiting;
      continue;
    }
    decisions.refused.push_back(
        {waiting->job,
         absl::UnavailableError(absl::StrCat(
             "a worker was lost while the job was queued: ", group_.workers, " are left")),
         true});
    waiting = Remove(waiting);
  }
  Admit(decisions);
  return decisions;
}

Admission::Decisions Admission::End(JobId job) {
  Decisions decisions;
  if (const auto found = admitted_.find(job); found != admitted_.end()) {
    const Reservation& reservation = found->second;
    for (size_t rank = 0; rank < reservation.workers.size(); ++rank) {
      const auto load = loads_.find(reservation.workers[rank]);
      load->second.bytes -= reservation.plan->peak_bytes[rank];
      if (--load->second.jobs == 0) loads_.erase(load);
    }
    admitted_.erase(found);
  } else if (const auto waiting = Find(job); waiting != queue_.end()) {
    Remove(waiting);
  } else {
    return decisions;
  }
  Admit(decisions);
  return decisions;
}

uint64_t Admission::Reserved(const std::string& worker_id) const {
  const auto found = loads_.find(worker_id);
  return found == loads_.end() ? 0 : found->second.bytes;
}

Admission::Queue::iterator Admission::Find(JobId job) {
  return std::find_if(queue_.begin(), queue_.end(),
                      [&](const Waiting& waiting) { return waiting.job == job; });
}

Admission::Queue::iterator Admission::Remove(const Queue::iterator& waiting) {
  queued_bytes_ -= waiting->spec_bytes;
  return queue_.erase(waiting);
}

void Admission::Ask(Waiting& waiting, Decisions& decisions) {
  waiting.asked = generation_;
  decisions.to_plan.push_back({.job = waiting.job,
                               .generation = generation_,
                               .spec = waiting.spec,
                               .options = waiting.options,
                               .pass = waiting.pass,
                               .group = group_});
}

std::optional<std::vector<std::string>> Admission::Place(const Plan& plan) const {
  struct Candidate {
    const std::string* worker_id = nullptr;
    Load load;
    uint64_t free = 0;
    bool taken = false;
  };
  std::vector<Candidate> candidates;
  for (const Capacity& worker : workers_) {
    if (worker.suspect) continue;
    const auto found = loads_.find(worker.worker_id);
    const Load load = found == loads_.end() ? Load() : found->second;
    if (load.jobs >= options_.max_jobs_per_worker) continue;
    candidates.push_back({&worker.worker_id, load, worker.memory_bytes - load.bytes});
  }
  // Idle ones first, so that small jobs spread.
  std::stable_sort(candidates.begin(), candidates.end(), [](const auto& a, const auto& b) {
    return std::tie(a.load.jobs, a.load.bytes) < std::tie(b.load.jobs, b.load.bytes);
  });
  // Whoever has room for a large rank has room for a smaller one: the largest first, each to the
  // first that has room, finds places for all if there are any.
  std::vector<int> ranks(plan.ranks());
  std::iota(ranks.begin(), ranks.end(), 0);
  std::stable_sort(ranks.begin(), ranks.end(),
                   [&](int a, int b) { return plan.peak_bytes[a] > plan.peak_bytes[b]; });
  std::vector<std::string> workers(ranks.size());
  for (const int rank : ranks) {
    const auto place =
        std::find_if(candidates.begin(), candidates.end(), [&](const Candidate& candidate) {
          return !candidate.taken && candidate.free >= plan.peak_bytes[rank];
        });
    if (place == candidates.end()) return std::nullopt;
    place->taken = true;
    workers[rank] = *place->worker_id;
  }
  return workers;
}

void Admission::Admit(Decisions& decisions) {
  while (!queue_.empty()) {
    Waiting& head = queue_.front();
    if (head.plan == nullptr || head.planned != generation_) {
      head.plan.reset();
      if (head.asked == 0) Ask(head, decisions);
      return;
    }
    std::optional<std::vector<std::string>> workers = Place(*head.plan);
    if (!workers.has_value()) return;
    for (size_t rank = 0; rank < workers->size(); ++rank) {
      Load& load = loads_[(*workers)[rank]];
      ++load.jobs;
      load.bytes += head.plan->peak_bytes[rank];
    }
    admitted_[head.job] = {*workers, head.plan};
    decisions.admitted.push_back({head.job, head.plan, *std::move(workers)});
    Remove(queue_.begin());
  }
}

}  // namespace ringserve
