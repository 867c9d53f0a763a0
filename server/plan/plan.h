// The planner: from a request's spec to everything its ranks need to know. Pure: integers in,
// integers out; no gRPC, threads, clocks or logs. Nothing that is decided here is decided again
// elsewhere.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "proto/band.h"
#include "proto/tensor_shape.h"
#include "ringserve/v1/attention.pb.h"
#include "ringserve/v1/shard.pb.h"
#include "server/plan/layout.h"
#include "server/plan/mask.h"

namespace ringserve {

// The workers that a job may use: how many, and what each may reserve at most (the smallest of
// them).
struct Group {
  int workers = 0;
  uint64_t memory_bytes = 0;  // 0: unlimited (a dry run)
};

struct Plan {
  v1::AttentionSpec spec;        // normalized: value_dim and scale filled in
  v1::AttentionOptions options;  // normalized: no AUTO, no UNSPECIFIED, workers >= 1
  Pass pass;
  SequenceLayout q;
  SequenceLayout kv;
  std::vector<std::vector<Band>>
      bands;  // see CompileMasks; one list for all batch rows, or one per batch row
  std::vector<std::vector<Alignment>> alignments;  // likewise; empty without ALiBi slopes
  std::vector<int> reach;  // by owner: how many ranks up the ring its shard travels: K and V, or Q
  std::vector<uint64_t> work;        // per rank: visible pairs over all batch rows that it computes
  std::vector<uint64_t> bytes_sent;  // per rank
  std::vector<uint64_t> peak_bytes;  // per rank: shards, accumulators, receive buffers, padding
  double imbalance = 1;
  double imbalance_total = 1;
  bool imbalance_is_bound = false;
  double estimated_seconds = 0;
  std::string reason;  // why this balancer, method and number of workers, in words

  int ranks() const { return q.ranks(); }
};

// What the coordinator assumes until told otherwise.
v1::Measurements DefaultMeasurements();

// `spec` and `options` are valid (proto/validate.h) for `pass`. The backward pass has layouts and
// slices as the forward pass; pass-Q is never chosen for it.
// UNAVAILABLE: group has no workers, or fewer than options.workers asks for.
// FAILED_PRECONDITION: a rank's peak bytes exceed group.memory_bytes however the options let it be
// cut, or the named balancer's layout is larger than 2^22 pieces, or
//   more than 2^62 pairs are visible, or a rank's part falls into more than 131,072 pieces (see
//   Workload); says the limit.
//   So are masks of more bands or comparisons than CompileMasks takes.
absl::StatusOr<Plan> MakePlan(const v1::AttentionSpec& spec, const v1::AttentionOptions& options,
                              const Group& group, const v1::Measurements& measurements,
                              Pass pass = {});

// One rank's steps: whose shard, what is sent and received, tiles. Grows with its own tiles only.
// Of the backward pass: as its Assignment has them.
std::vector<v1::Step> StepsFor(const Plan& plan, int rank);

// The backward pass's steps as the worker goes through them (worker/attention/backward_plan.h): the
// tiles of a shard in the step of the ring in which it would come, and in the step after it the
// gradients of its keys to their owner: as partial_sends and partial_recvs. For people.
std::vector<v1::Step> BackwardStepsFor(const Plan& plan, int rank);

// The message for `rank`, complete but for `job` and `request_id`.
v1::Assignment AssignmentFor(const Plan& plan, int rank);

v1::PlanSummary Summarize(const Plan& plan);
std::vector<v1::RankSteps> SummarizeSteps(const Plan& plan);

// For people: layout, steps, tiles, work and bytes per rank. `ringctl plan` prints it.
std::string Describe(const Plan& plan);

}  // namespace ringserve
