// A rank's bytes as the tensors of the ring loops.
#pragma once

#include <memory>

#include "worker/attention/backward_ring.h"
#include "worker/attention/ring.h"
#include "worker/rank_job.h"

namespace ringserve {

// Views of the job's memory, which is allocated and of `device`; each keeps the job alive. Throws
// what LibTorch throws.
RankTensors MakeTensors(const std::shared_ptr<RankJob>& job, at::Device device = at::kCPU);
BackwardTensors MakeBackwardTensors(const std::shared_ptr<RankJob>& job,
                                    at::Device device = at::kCPU);

ShardFormat MakeFormat(const v1::AttentionSpec& spec);

}  // namespace ringserve
