// The worker's program: what it is linked with, and what it says of this machine's devices. Built
// with and without CUDA (RINGSERVE_WITH_CUDA).
#include <dlfcn.h>

#include <algorithm>
#include <iterator>
#include <set>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/ascii.h"
#include "absl/strings/str_split.h"
#include "tests/support/process.h"

namespace ringserve::test {
namespace {

using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::StartsWith;

constexpr int kExitDevice = 4;
constexpr const char* kOwners[] = {" std::", "onnx_torch", "torch::", "caffe2"};

struct Said {
  int exit = -1;
  std::string output, log;
};

Said Run(const std::string& program, const std::vector<std::string>& arguments) {
  Spawner spawner;
  const auto process = spawner.Start(program, arguments);
  Said said;
  said.exit = process->WaitForExit().value_or(-1);
  said.output = process->output();
  said.log = process->log();
  return said;
}

Said RunWorker(const std::vector<std::string>& arguments) {
  return Run(Binary("ringserve-worker"), arguments);
}

// Names of the libraries that are loaded with the program, without their versions.
std::multiset<std::string> LoadedLibraries() {
  const Said said = Run("/usr/bin/ldd", {Binary("ringserve-worker")});
  EXPECT_EQ(said.exit, 0) << said.log;
  EXPECT_EQ(said.output.find("not found"), std::string::npos) << said.output;
  std::multiset<std::string> names;
  for (const absl::string_view line : absl::StrSplit(said.output, '\n', absl::SkipWhitespace())) {
    const absl::string_view file = absl::StripLeadingAsciiWhitespace(line);
    names.emplace(file.substr(0, file.find(".so")));
  }
  return names;
}

// What the program asks of its libraries, or a library offers.
std::string Symbols(const std::string& way, const std::string& file) {
  const Said said = Run("/usr/bin/nm", {"-DC", way, file});
  EXPECT_EQ(said.exit, 0) << said.log;
  return said.output;
}

bool HasDriver() {
  void* const driver = dlopen("libcuda.so.1", RTLD_LAZY);
  if (driver != nullptr) dlclose(driver);
  return driver != nullptr;
}

TEST(WorkerProgram, SaysItsVersion) {
  const Said said = RunWorker({"--version"});
  EXPECT_EQ(said.exit, 0) << said.log;
  EXPECT_THAT(said.output, StartsWith("ringserve-worker "));
}

TEST(WorkerProgram, ListsTheDevicesOfThisMachine) {
  const Said said = RunWorker({"--list-devices"});
  EXPECT_EQ(said.exit, 0) << said.log;
  EXPECT_EQ(said.log, "");
  EXPECT_THAT(said.output, StartsWith("cpu "));
  EXPECT_EQ(said.output.find("built with CUDA 13.") != said.output.npos, bool{RINGSERVE_WITH_CUDA});
  if (!RINGSERVE_WITH_CUDA) {
    EXPECT_THAT(said.output, HasSubstr("no CUDA device: this program is built without CUDA"));
  } else if (!HasDriver()) {
    EXPECT_THAT(said.output, HasSubstr("no CUDA device: there is no NVIDIA driver"));
  } else {
    EXPECT_THAT(said.output, ::testing::AnyOf(HasSubstr("cuda:0 "), HasSubstr("no CUDA device")));
  }
}

TEST(WorkerProgram, RefusesADeviceThatCannotBeServedWithAnExitCodeOfItsOwn) {
  const Said said = RunWorker({"--device", "cuda:0"});
  EXPECT_EQ(said.exit, kExitDevice);
  EXPECT_EQ(said.output, "");
  EXPECT_EQ(said.log.find('\n'), said.log.size() - 1) << said.log;
  EXPECT_THAT(said.log, StartsWith("ringserve-worker: --device cuda:0: "));
  if (!RINGSERVE_WITH_CUDA) {
    EXPECT_THAT(said.log, HasSubstr("built without CUDA"));
  } else if (!HasDriver()) {
    EXPECT_THAT(said.log, HasSubstr("there is no NVIDIA driver"));
  }
}

TEST(WorkerProgram, LinksOneProtobuf) {
  EXPECT_EQ(LoadedLibraries().count("libprotobuf"), 1u);
  // LibTorch has another inside, of which it offers nothing but instances of templates of the
  // standard library and of its own.
  const std::string offered = Symbols("--defined-only", RINGSERVE_LIBTORCH_CPU);
  for (const absl::string_view line : absl::StrSplit(offered, '\n')) {
    if (line.find("google::protobuf") == line.npos) continue;
    const bool instance =
        std::any_of(std::begin(kOwners), std::end(kOwners),
                    [&](const char* owner) { return line.find(owner) != line.npos; });
    EXPECT_TRUE(instance) << line;
  }
}

TEST(WorkerProgram, LinksCudaAndNcclOnlyIfItIsBuiltWithThem) {
  const std::multiset<std::string> loaded = LoadedLibraries();
  std::set<std::string> nvidia;
  for (const std::string& name : loaded) {
    for (const char* part : {"cuda", "cudnn", "cublas", "cupti", "nccl", "nvrtc", "nvshmem"}) {
      if (name.find(part) != name.npos) nvidia.insert(name);
    }
  }
  const std::string asked = Symbols("--undefined-only", Binary("ringserve-worker"));
  const bool asks_cuda = asked.find(" cudaGetDeviceCount") != asked.npos;
  if (RINGSERVE_WITH_CUDA) {
    for (const char* name : {"libtorch_cuda", "libc10_cuda", "libcudart", "libnccl"}) {
      EXPECT_THAT(nvidia, Contains(name));
    }
    EXPECT_TRUE(asks_cuda);
  } else {
    // Those that libtorch_cpu cannot be loaded without.
    EXPECT_EQ(nvidia, (std::set<std::string>{"libcudart", "libcupti"}));
    EXPECT_FALSE(asks_cuda);
    EXPECT_EQ(asked.find(" nccl"), asked.npos);
  }
}

}  // namespace
}  // namespace ringserve::test
