#include "proto/machine.h"

#include <sched.h>

#include <algorithm>
#include <fstream>
#include <optional>
#include <sstream>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"

namespace ringserve {
namespace {

// A cgroup of this process, by its files.
struct Cgroup {
  bool v2 = false;
  std::string folder;
};

std::string TextOf(const std::string& path) {
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

// The first words of the file's first line.
std::vector<std::string> WordsOf(const std::string& path) {
  std::istringstream line(TextOf(path));
  std::vector<std::string> words;
  for (std::string word; words.size() < 2 && line >> word;) words.push_back(word);
  return words;
}

// Nothing: there is no such number, as where it says "max" or -1.
std::optional<uint64_t> NumberIn(const std::string& path, size_t word = 0) {
  const std::vector<std::string> words = WordsOf(path);
  uint64_t number = 0;
  if (words.size() <= word || !absl::SimpleAtoi(words[word], &number)) return std::nullopt;
  return number;
}

// The number behind `name` in a file of such lines; 0: there is none.
uint64_t EntryOf(const std::string& path, absl::string_view name) {
  std::istringstream lines(TextOf(path));
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    std::string first;
    uint64_t number = 0;
    if (words >> first >> number && first == name) return number;
  }
  return 0;
}

bool HasWord(absl::string_view list, absl::string_view word) {
  for (const absl::string_view entry : absl::StrSplit(list, ',')) {
    if (entry == word) return true;
  }
  return false;
}

// Where the hierarchy of `controller` (v1), or the common one (v2), is mounted, and which of its
// cgroups is seen there.
struct Mount {
  std::string folder, cgroup;
};
std::optional<Mount> MountOf(const std::string& root, bool v2, absl::string_view controller) {
  std::istringstream lines(TextOf(root + "/proc/self/mountinfo"));
  for (std::string line; std::getline(lines, line);) {
    // ID PARENT DEVICE ROOT MOUNT-POINT OPTIONS [FIELDS] - TYPE SOURCE SUPER-OPTIONS
    const std::vector<std::string> halves = absl::StrSplit(line, absl::MaxSplits(" - ", 1));
    if (halves.size() < 2) continue;
    const std::vector<std::string> left = absl::StrSplit(halves[0], ' ');
    const std::vector<std::string> right = absl::StrSplit(halves[1], ' ');
    if (left.size() < 5 || right.size() < 3) continue;
    const bool wanted =
        v2 ? right[0] == "cgroup2" : right[0] == "cgroup" && HasWord(right[2], controller);
    if (wanted) return Mount{root + left[4], left[3]};
  }
  return std::nullopt;
}

// This process's cgroups that `controller` may limit: its own and all above it, as far as they are
// seen.
std::vector<Cgroup> CgroupsOf(const std::string& root, absl::string_view controller) {
  std::vector<Cgroup> cgroups;
  std::istringstream lines(TextOf(root + "/proc/self/cgroup"));
  for (std::string line; std::getline(lines, line);) {
    // HIERARCHY:CONTROLLERS:PATH, the common hierarchy being 0 without controllers
    const std::vector<std::string> parts = absl::StrSplit(line, absl::MaxSplits(':', 2));
    if (parts.size() < 3) continue;
    const bool v2 = parts[0] == "0" && parts[1].empty();
    if (!v2 && !HasWord(parts[1], controller)) continue;
    const std::optional<Mount> mount = MountOf(root, v2, controller);
    if (!mount.has_value()) continue;
    std::string path = parts[2];
    // A container sees its own cgroup at the mount point, and may be told its path outside.
    if (mount->cgroup != "/") {
      path = absl::StartsWith(path, mount->cgroup) ? path.substr(mount->cgroup.size()) : "";
    }
    for (;;) {
      while (!path.empty() && path.back() == '/') path.pop_back();
      cgroups.push_back({v2, mount->folder + path});
      if (path.empty()) break;
      path.resize(path.rfind('/') == std::string::npos ? 0 : path.rfind('/'));
    }
  }
  return cgroups;
}

// Nothing: it has no limit.
std::optional<uint64_t> MemoryLeft(const Cgroup& cgroup) {
  const char* const limit_file = cgroup.v2 ? "/memory.max" : "/memory.limit_in_bytes";
  const char* const usage_file = cgroup.v2 ? "/memory.current" : "/memory.usage_in_bytes";
  const std::optional<uint64_t> limit = NumberIn(cgroup.folder + limit_file);
  if (!limit.has_value()) return std::nullopt;
  uint64_t used = NumberIn(cgroup.folder + usage_file).value_or(0);
  used -= std::min(used, EntryOf(cgroup.folder + "/memory.stat",
                                 cgroup.v2 ? "inactive_file" : "total_inactive_file"));
  return *limit - std::min(*limit, used);
}

// In processors; nothing: it has none.
std::optional<double> QuotaOf(const Cgroup& cgroup) {
  const std::string v2 = cgroup.folder + "/cpu.max";
  const std::optional<uint64_t> quota =
      cgroup.v2 ? NumberIn(v2) : NumberIn(cgroup.folder + "/cpu.cfs_quota_us");
  const std::optional<uint64_t> period =
      cgroup.v2 ? NumberIn(v2, 1) : NumberIn(cgroup.folder + "/cpu.cfs_period_us");
  if (!quota.has_value() || !period.has_value() || *period == 0) return std::nullopt;
  return static_cast<double>(*quota) / static_cast<double>(*period);
}

int ProcessorsOfAffinity() {
  // The kernel refuses a set that is smaller than its own.
  for (int most = CPU_SETSIZE; most <= (1 << 20); most *= 2) {
    cpu_set_t* const set = CPU_ALLOC(most);
    const size_t bytes = CPU_ALLOC_SIZE(most);
    const int count = sched_getaffinity(0, bytes, set) == 0 ? CPU_COUNT_S(bytes, set) : 0;
    CPU_FREE(set);
    if (count > 0) return count;
  }
  return 1;
}

}  // namespace

uint64_t AvailableMemoryBytes(const std::string& root) {
  uint64_t bytes = EntryOf(root + "/proc/meminfo", "MemAvailable:") * 1024;
  if (bytes == 0) return 0;
  for (const Cgroup& cgroup : CgroupsOf(root, "memory")) {
    bytes = std::min(bytes, MemoryLeft(cgroup).value_or(bytes));
  }
  return bytes;
}

int AvailableThreads(const std::string& root) {
  int threads = ProcessorsOfAffinity();
  for (const Cgroup& cgroup : CgroupsOf(root, "cpu")) {
    const std::optional<double> quota = QuotaOf(cgroup);
    if (quota.has_value() && *quota < threads) threads = std::max(1, static_cast<int>(*quota));
  }
  return threads;
}

}  // namespace ringserve
