// The call of the service as a function that autograd knows.
#pragma once

#include <memory>

#include <ATen/core/Tensor.h>

#include "client/torch/sdpa_call.h"
#include "client/torch/service.h"

namespace ringserve {

// [B, Hq, Tq, Dv] of the call's tensors. Blocks. Its backward pass asks the same service, blocks on
// the thread where it runs, and takes no backward pass of its own. Throws ContextParallelError,
// statuses as Client::Attend (backward: Client::AttendBackward; UNIMPLEMENTED for gradients of
// gradients).
at::Tensor Attend(const std::shared_ptr<AttentionService>& service, const SdpaCall& call);

}  // namespace ringserve
