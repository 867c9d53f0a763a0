// NcclCommunicator as an implementation under test, over a fake NCCL that the ranks, threads,
// share.
#pragma once

#include "tests/worker/comm/ranks.h"

namespace ringserve::test {

Implementation NcclOverFake();

}  // namespace ringserve::test
