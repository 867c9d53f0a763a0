// The jobs of a request's ranks, as the coordinator sends them and workers take them, and a
// request's tensors in and out of their memory. Ranks are bound to members in reverse, so that
// mistaking one for the other shows.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "server/plan/plan.h"
#include "tests/support/oracle.h"
#include "worker/rank_job.h"

namespace ringserve::test {

using Jobs = std::vector<std::shared_ptr<RankJob>>;  // by rank

// Allocated. Throws what is wrong with the plan.
Jobs MakeJobs(const Plan& plan);
Jobs MakeJobs(const Plan& plan, const Inputs& inputs);  // filled

// Dense bytes of the whole request.
void Scatter(const Plan& plan, v1::TensorId tensor, const std::vector<std::byte>& bytes,
             const Jobs& jobs);
std::vector<std::byte> Gather(const Plan& plan, v1::TensorId tensor, const Jobs& jobs);

}  // namespace ringserve::test
