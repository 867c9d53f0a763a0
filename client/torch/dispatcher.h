// Takes at::scaled_dot_product_attention over, and says which service it goes to.
#pragma once

#include <memory>

#include <c10/util/ThreadLocalDebugInfo.h>

#include "client/torch/service.h"

namespace ringserve {

// While it lives, calls on this thread, and in the tasks that LibTorch starts from it, go to
// `service`.
class EnteredScope {
 public:
  explicit EnteredScope(std::shared_ptr<AttentionService> service);

 private:
  c10::DebugInfoGuard guard_;
};

// Of the whole process, where no scope is entered; the last of several. Thread safe.
void PushProcessService(std::shared_ptr<AttentionService> service);
// False: there was none.
bool PopProcessService();

}  // namespace ringserve
