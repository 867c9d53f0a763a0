// The whole way from a request to its answer but for the service around it.
#include <algorithm>
#include <memory>
#include <string>

#include <gtest/gtest.h>

#include "tests/support/random.h"
#include "tests/worker/attention/every_block.h"
#include "tests/worker/attention/ring_case.h"
#include "tests/worker/comm/grpc_transport.h"
#include "tests/worker/comm/nccl_transport.h"

namespace ringserve::test {
namespace {

constexpr int kCasesPerBatch = 100;
constexpr int kBatches = 24;
constexpr int kExtrasBatches = 8;
constexpr int kDeviceCases = 300;
constexpr int kLongCases = 60;
constexpr int kCasesOverOne = 150;

class Ring : public ::testing::TestWithParam<int> {};

TEST_P(Ring, GivesWhatTheOracleGives) {
  const int first = GetParam() * kCasesPerBatch;
  for (int seed = first; seed < first + kCasesPerBatch; ++seed) {
    CheckCase(RandomCase(seed, kMostWorkers, 200));
  }
}

INSTANTIATE_TEST_SUITE_P(HundredsOfCases, Ring, ::testing::Range(0, kBatches));

class RingWithExtras : public ::testing::TestWithParam<int> {};

TEST_P(RingWithExtras, GivesWhatTheOracleGives) {
  const int first = 300'000 + GetParam() * kCasesPerBatch;
  for (int seed = first; seed < first + kCasesPerBatch && !HasFailure(); ++seed) {
    Case c = RandomCase(seed, kMostWorkers, seed % 20 == 0 ? 700 : 150);
    AddRandomExtras(c);
    CheckCase(c);
  }
}

INSTANTIATE_TEST_SUITE_P(HundredsOfCases, RingWithExtras, ::testing::Range(0, kExtrasBatches));

class RingOnDevice : public ::testing::TestWithParam<NamedBlock> {};

TEST_P(RingOnDevice, GivesWhatTheOracleGives) {
  for (int seed = 0; seed < kDeviceCases && !HasFailure(); ++seed) {
    Case c = RandomCase(400'000 + seed, kMostWorkers, seed % 20 == 0 ? 700 : 150);
    if (seed % 2 == 0) AddRandomExtras(c);
    CheckCase(c, {}, *GetParam().block);
  }
}

INSTANTIATE_TEST_SUITE_P(Every, RingOnDevice, ::testing::ValuesIn(EveryDeviceBlock()),
                         [](const auto& info) { return info.param.name; });

// Past the sizes of the kernel's own blocks, head dims up to the largest that is served.
TEST(LongRing, GivesWhatTheOracleGives) {
  for (int seed = 0; seed < kLongCases; ++seed) {
    Case c = RandomCase(100'000 + seed, kMostWorkers, 1500);
    Random random(seed);
    c.spec.set_batch(1);
    c.spec.mutable_masks()->DeleteSubrange(0, std::max(0, c.spec.masks_size() - 1));
    c.spec.set_kv_heads(1);
    c.spec.set_q_heads(random.Between(1, 2));
    if (random.Chance(0.3)) c.spec.set_head_dim(random.Pick({256, 1000, 1024}));
    if (random.Chance(0.2)) c.spec.set_value_dim(random.Pick({512, 1023, 1024}));
    CheckCase(c);
  }
}

// The workers' own communicators, one epoch for all the jobs.
class RingOver : public ::testing::TestWithParam<Implementation> {};

TEST_P(RingOver, GivesWhatTheOracleGives) {
  GetParam().prepare();
  std::vector<std::unique_ptr<Transport>> transports;
  std::vector<std::string> addresses;
  for (int member = 0; member < kMostWorkers; ++member) {
    transports.push_back(GetParam().make());
    addresses.push_back(transports[member]->address());
  }
  std::vector<std::shared_ptr<Communicator>> communicators;
  std::vector<Communicator*> members;
  for (int member = 0; member < kMostWorkers; ++member) {
    communicators.push_back(transports[member]->Build("epoch", addresses, member));
    members.push_back(communicators[member].get());
  }
  for (int seed = 0; seed < kCasesOverOne && !HasFailure(); ++seed) {
    Case c = RandomCase(200'000 + seed, kMostWorkers, 300);
    c.options.set_workers(2 + seed % 3);
    c.options.clear_worker_weights();
    CheckCase(c, members);
  }
  for (Communicator* member : members) member->Abort(absl::CancelledError("the test is over"));
}

INSTANTIATE_TEST_SUITE_P(Communicators, RingOver,
                         ::testing::Values(GrpcOver("Tcp", "127.0.0.1:0"), NcclOverFake()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace ringserve::test
