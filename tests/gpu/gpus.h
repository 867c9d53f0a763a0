// The GPUs of this machine, for tests that want one.
#pragma once

#include <string>

namespace ringserve::test {

int GpuCount();

// Why there is none that a test could use; empty: there is.
std::string WhyNoGpu();

}  // namespace ringserve::test
