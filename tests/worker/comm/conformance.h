// The conformance suite of Communicator: what every implementation must do, over ranks that are
// threads (communicator_threads_test) or processes (communicator_processes_test). Each file of the
// suite is a part of one fixture; an implementation is added in implementations.cc, or where its
// program is (tests/gpu).
#pragma once

#include <functional>
#include <memory>
#include <set>
#include <vector>

#include <gtest/gtest.h>

#include "absl/status/status.h"
#include "tests/worker/comm/ranks.h"
#include "worker/comm/communicator.h"

namespace ringserve::test {

using Bytes = std::vector<std::byte>;

class CommunicatorTest : public ::testing::TestWithParam<Implementation> {
 protected:
  void SetUp() override {
    if (!GetParam().missing.empty()) GTEST_SKIP() << GetParam().missing;
  }

  void Run(int ranks, const std::function<void(Rank&)>& body, const std::set<int>& doomed = {}) {
    RunRanks(RunAs::RANKS_RUN_AS, ranks, GetParam(), body, doomed);
  }
};

inline Communicator::Clock::time_point Now() { return Communicator::Clock::now(); }
inline Communicator::Clock::time_point Soon() { return Now() + kPatience; }

// Of a transfer's pattern: tells where its bytes come from.
uint64_t Seed(int from, int to, const TransferTag& tag);

// A copy of the bytes, owned by the operation: a transport may read them after an error. Into a
// whole buffer, which outlives the transfer.
SendOp SendOf(int peer, const Bytes& bytes);
RecvOp RecvInto(int peer, Bytes& bytes);

Communicator::Ticket MustPost(Communicator& communicator, const TransferTag& tag,
                              const std::vector<SendOp>& sends, const std::vector<RecvOp>& recvs);

// One turn of the ring: to the next, from the previous; checks what came.
void Turn(Rank& rank, Communicator& communicator, const TransferTag& tag, size_t size);

void RequireMoved(const Communicator& communicator, int peer, const PeerCounters& expected);

// The communicator has ended with this code, and says so from now on.
void RequireEnded(Communicator& communicator, absl::StatusCode code);

}  // namespace ringserve::test
