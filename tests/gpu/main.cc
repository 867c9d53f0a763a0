// Runs a program's tests where there is a GPU; else one, which says why not.
#include <gtest/gtest.h>

#include "tests/gpu/gpus.h"

namespace ringserve::test {
namespace {

TEST(Gpu, IsThere) {
  const std::string why = WhyNoGpu();
  if (!why.empty()) GTEST_SKIP() << why;
}

}  // namespace
}  // namespace ringserve::test

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  if (!ringserve::test::WhyNoGpu().empty()) ::testing::GTEST_FLAG(filter) = "Gpu.IsThere";
  return RUN_ALL_TESTS();
}
