// The call of the service as a function of tensors.
#pragma once

#include <memory>

#include <ATen/core/Tensor.h>

#include "client/torch/sdpa_call.h"
#include "client/torch/service.h"

namespace ringserve {

// [B, Hq, Tq, Dv] of the call's tensors. Blocks. Throws ContextParallelError, statuses as
// Client::Attend, and UNIMPLEMENTED where a gradient would be asked for.
at::Tensor Attend(const std::shared_ptr<AttentionService>& service, const SdpaCall& call);

}  // namespace ringserve
