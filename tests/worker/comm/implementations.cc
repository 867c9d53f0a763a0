// What the conformance suite runs over where no GPU is needed.
#include "tests/worker/comm/conformance.h"
#include "tests/worker/comm/grpc_transport.h"
#include "tests/worker/comm/nccl_transport.h"

namespace ringserve::test {
namespace {

std::vector<Implementation> Implementations() {
  std::vector<Implementation> all = {GrpcOver("Tcp", "127.0.0.1:0"), GrpcOver("Unix", "unix:/tmp"),
                                     GrpcOverTls()};
  // Its devices are in one process's memory.
  if (RunAs::RANKS_RUN_AS == RunAs::kThreads) all.push_back(NcclOverFake());
  return all;
}

}  // namespace

INSTANTIATE_TEST_SUITE_P(Communicators, CommunicatorTest, ::testing::ValuesIn(Implementations()),
                         [](const auto& info) { return info.param.name; });

}  // namespace ringserve::test
