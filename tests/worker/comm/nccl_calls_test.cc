// The real NCCL, as far as it comes without a GPU. In builds with CUDA.
#include "worker/comm/nccl_calls.h"

#include <cuda_runtime_api.h>

#include <cstdlib>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/wait.h"
#include "worker/comm/build_order.h"
#include "worker/comm/nccl_communicator.h"

namespace ringserve::test {
namespace {

using ::testing::HasSubstr;
using ::testing::MatchesRegex;

bool HasGpu() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess && count > 0;
}

std::unique_ptr<NcclLibrary> Library() {
  return MakeNcclLibrary(0, [] { return nullptr; });
}

TEST(NcclCalls, IsAsNewAsItMustBe) {
  EXPECT_THAT(NcclVersion(), MatchesRegex("2\\.[3-9][0-9]\\.[0-9]+"));
}

TEST(NcclCalls, ListensOnNoPortOfItsOwn) {
  const auto library = Library();
  EXPECT_STREQ(std::getenv("NCCL_RAS_ENABLE"), "0");
}

TEST(NcclCalls, RefusesWhatIsNoUniqueId) {
  EXPECT_EQ(Library()->Connect("short", 2, 0).status(),
            absl::InvalidArgumentError("a unique id of NCCL has 128 bytes, not 5"));
}

TEST(NcclCalls, MakesUniqueIdsThatDifferOrSaysWhyNot) {
  const auto library = Library();
  const absl::StatusOr<std::string> one = library->MakeUniqueId(), other = library->MakeUniqueId();
  if (!one.ok()) {
    EXPECT_FALSE(HasGpu()) << one.status();
    EXPECT_THAT(std::string(one.status().message()), HasSubstr("ncclGetUniqueId: "));
    return;
  }
  ASSERT_TRUE(other.ok()) << other.status();
  EXPECT_EQ(one->size(), 128u);
  EXPECT_NE(*one, *other);
}

TEST(NcclCalls, WithoutAGpuACommunicatorSaysSoAndEnds) {
  if (HasGpu()) GTEST_SKIP() << "there is a GPU";
  const auto library = Library();
  absl::Mutex mu;
  absl::Status built;
  NcclCommunicator communicator(
      *library, std::make_shared<BuildOrder>(), 0, {"worker 0"},
      {.on_stuck = [](const std::string& what) { ADD_FAILURE() << what; }},
      [&](const absl::Status& status) {
        absl::MutexLock lock(&mu);
        built = status;
      });
  communicator.Meet(std::string(128, 'x'));
  EXPECT_TRUE(WaitUntil([&] {
    absl::MutexLock lock(&mu);
    return absl::IsInternal(built);
  }));
  EXPECT_THAT(std::string(built.message()), HasSubstr("cudaSetDevice: "));
  EXPECT_EQ(communicator.Post({}, {}, {}).status(), built);
}

}  // namespace
}  // namespace ringserve::test
