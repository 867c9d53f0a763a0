// The GPUs of this machine, for tests that want one.
#pragma once

#include <string>
#include <vector>

namespace ringserve::test {

// The N of each cuda:N that a worker could use.
const std::vector<int>& ServedGpus();

// Why there is no cuda:0 that a test could use; empty: there is.
std::string WhyNoGpu();

}  // namespace ringserve::test
