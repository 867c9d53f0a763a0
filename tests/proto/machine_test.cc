#include "proto/machine.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>

#include <gtest/gtest.h>

namespace ringserve {
namespace {

constexpr uint64_t kGiB = uint64_t{1} << 30;

// A machine made of files.
class Machine : public ::testing::Test {
 protected:
  Machine() {
    std::string name = (std::filesystem::temp_directory_path() / "machine.XXXXXX").string();
    root_ = mkdtemp(name.data());
    Write("/proc/meminfo", "MemTotal:       33554432 kB\nMemAvailable:   16777216 kB\n");
  }
  ~Machine() override { std::filesystem::remove_all(root_); }

  void Write(const std::string& path, const std::string& text) {
    std::filesystem::create_directories(std::filesystem::path(root_ + path).parent_path());
    std::ofstream(root_ + path) << text;
  }
  void MountV2(const std::string& cgroup, const std::string& seen_from = "/") {
    Write("/proc/self/cgroup", "0::" + cgroup + "\n");
    Write("/proc/self/mountinfo",
          "30 23 0:27 / /proc rw - proc proc rw\n"
          "35 24 0:30 " +
              seen_from + " /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw\n");
  }
  void MountV1(const std::string& cgroup, const std::string& seen_from = "/") {
    Write("/proc/self/cgroup",
          "9:name=systemd:/\n4:memory:" + cgroup + "\n2:cpuacct,cpu:" + cgroup + "\n0::/\n");
    Write("/proc/self/mountinfo",
          "33 31 0:30 " + seen_from +
              " /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n"
              "35 31 0:32 " +
              seen_from +
              " /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
              "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n");
  }

  // As seen by a thread that may run anywhere, on a machine of enough processors.
  int Threads() const { return AvailableThreads(root_); }

  std::string root_;
};

TEST_F(Machine, HasTheMemoryThatTheSystemCallsAvailable) {
  EXPECT_EQ(AvailableMemoryBytes(root_), 16 * kGiB);
  MountV2("/");
  EXPECT_EQ(AvailableMemoryBytes(root_), 16 * kGiB);
  Write("/proc/meminfo", "MemTotal:       33554432 kB\n");
  EXPECT_EQ(AvailableMemoryBytes(root_), 0u) << "it does not say";
  EXPECT_EQ(AvailableMemoryBytes("/absent"), 0u);
  EXPECT_GT(AvailableMemoryBytes(), 0u) << "this one";
}

TEST_F(Machine, GivesNoMoreMemoryThanItsCgroupHasLeft) {
  MountV2("/pod/job");
  Write("/sys/fs/cgroup/pod/job/memory.max", "4294967296\n");
  Write("/sys/fs/cgroup/pod/job/memory.current", "3221225472\n");
  EXPECT_EQ(AvailableMemoryBytes(root_), 1 * kGiB);
  Write("/sys/fs/cgroup/pod/job/memory.stat", "anon 1073741824\ninactive_file 2147483648\n");
  EXPECT_EQ(AvailableMemoryBytes(root_), 3 * kGiB) << "file pages can be dropped";
  Write("/sys/fs/cgroup/pod/job/memory.current", "9000000000\n");
  Write("/sys/fs/cgroup/pod/job/memory.stat", "inactive_file 0\n");
  EXPECT_EQ(AvailableMemoryBytes(root_), 0u);
  Write("/sys/fs/cgroup/pod/job/memory.max", "max\n");
  EXPECT_EQ(AvailableMemoryBytes(root_), 16 * kGiB);
  Write("/sys/fs/cgroup/pod/memory.max", "2147483648\n");
  EXPECT_EQ(AvailableMemoryBytes(root_), 2 * kGiB) << "one above it has a limit, too";
}

TEST_F(Machine, ObeysTheOlderKindOfCgroup) {
  MountV1("/docker/abc");
  Write("/sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes", "9223372036854771712\n");
  Write("/sys/fs/cgroup/memory/docker/abc/memory.usage_in_bytes", "1073741824\n");
  EXPECT_EQ(AvailableMemoryBytes(root_), 16 * kGiB);
  Write("/sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes", "4294967296\n");
  EXPECT_EQ(AvailableMemoryBytes(root_), 3 * kGiB);
  Write("/sys/fs/cgroup/memory/docker/abc/memory.stat",
        "inactive_file 5\ntotal_inactive_file 1073741824\n");
  EXPECT_EQ(AvailableMemoryBytes(root_), 4 * kGiB);
}

TEST_F(Machine, FindsTheCgroupOfAContainerThatSeesNoOther) {
  MountV1("/docker/abc", "/docker/abc");
  Write("/sys/fs/cgroup/memory/memory.limit_in_bytes", "1073741824\n");
  EXPECT_EQ(AvailableMemoryBytes(root_), 1 * kGiB);
  MountV2("/../other", "/docker/abc");
  Write("/sys/fs/cgroup/memory.max", "2147483648\n");
  EXPECT_EQ(AvailableMemoryBytes(root_), 2 * kGiB);
}

TEST_F(Machine, RunsAsManyThreadsAsItsAffinityAllows) {
  int alone = 0;
  std::thread([&] {
    cpu_set_t before, one;
    sched_getaffinity(0, sizeof(before), &before);
    CPU_ZERO(&one);
    for (int cpu = 0; CPU_COUNT(&one) == 0; ++cpu) {
      if (CPU_ISSET(cpu, &before)) CPU_SET(cpu, &one);
    }
    sched_setaffinity(0, sizeof(one), &one);
    alone = AvailableThreads(root_);
  }).join();
  EXPECT_EQ(alone, 1);
  EXPECT_LE(Threads(), sysconf(_SC_NPROCESSORS_CONF));
}

TEST_F(Machine, RunsNoMoreThreadsThanItsQuotaFeeds) {
  const int all = Threads();
  if (all < 2) GTEST_SKIP() << "one processor alone: no quota can be seen";
  MountV2("/pod/job");
  Write("/sys/fs/cgroup/pod/job/cpu.max", "max 100000\n");
  EXPECT_EQ(Threads(), all);
  Write("/sys/fs/cgroup/pod/job/cpu.max", "9900000 100000\n");
  EXPECT_EQ(Threads(), std::min(all, 99));
  Write("/sys/fs/cgroup/pod/job/cpu.max", "150000 100000\n");
  EXPECT_EQ(Threads(), 1) << "the half is not a thread's worth";
  Write("/sys/fs/cgroup/pod/job/cpu.max", "20000 100000\n");
  EXPECT_EQ(Threads(), 1);
  Write("/sys/fs/cgroup/pod/job/cpu.max", "max 100000\n");
  Write("/sys/fs/cgroup/pod/cpu.max", "100000 100000\n");
  EXPECT_EQ(Threads(), 1) << "one above it has a quota, too";
  MountV1("/docker/abc");
  Write("/sys/fs/cgroup/cpu/docker/abc/cpu.cfs_quota_us", "-1\n");
  Write("/sys/fs/cgroup/cpu/docker/abc/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(Threads(), all);
  Write("/sys/fs/cgroup/cpu/docker/abc/cpu.cfs_quota_us", "100000\n");
  EXPECT_EQ(Threads(), 1);
}

}  // namespace
}  // namespace ringserve
