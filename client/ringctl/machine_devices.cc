#include "client/ringctl/machine_devices.h"

#include <poll.h>

#include <algorithm>
#include <chrono>
#include <optional>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "absl/time/clock.h"
#include "client/ringctl/child.h"

namespace ringserve {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr milliseconds kListPatience{60'000};
constexpr absl::string_view kNone = "no CUDA device: ";
constexpr absl::string_view kGpu = "cuda:";

// How it ended; nothing: it does not.
std::optional<std::string> AwaitEnd(Child& child, Clock::time_point deadline) {
  for (;;) {
    const std::optional<std::string> how = child.Ended();
    if (how.has_value() || Clock::now() >= deadline) return how;
    absl::SleepFor(absl::Milliseconds(1));  // its output has ended: it is about to
  }
}

// The number before " GiB", in bytes; 0: there is none.
uint64_t MemoryOf(absl::string_view line) {
  const absl::string_view before = line.substr(0, line.rfind(" GiB"));
  double gib = 0;
  if (before.size() == line.size() ||
      !absl::SimpleAtod(before.substr(before.rfind(' ') + 1), &gib) || !(gib > 0 && gib < 1e6)) {
    return 0;
  }
  return static_cast<uint64_t>(gib * (1 << 30));
}

}  // namespace

MachineDevices ReadDevices(const std::string& listing) {
  MachineDevices devices;
  devices.listing = listing;
  for (const absl::string_view line : absl::StrSplit(listing, '\n')) {
    if (absl::StartsWith(line, kGpu) && !absl::StrContains(line, ';')) {
      devices.gpus.push_back({std::string(line.substr(0, line.find(' '))), MemoryOf(line)});
    } else if (absl::StartsWith(line, kGpu) || absl::StartsWith(line, kNone)) {
      devices.why_no_gpu = std::string(line);
    }
  }
  if (!devices.gpus.empty()) {
    devices.why_no_gpu.clear();
  } else if (devices.why_no_gpu.empty()) {
    devices.why_no_gpu = "no CUDA device: ringserve-worker --list-devices names none";
  }
  return devices;
}

absl::StatusOr<MachineDevices> AskDevices(const std::string& worker_program) {
  absl::StatusOr<Child> child = Child::Start(worker_program, {"--list-devices"});
  if (!child.ok()) return child.status();
  const Clock::time_point deadline = Clock::now() + kListPatience;
  std::string listing;
  while (child->out() >= 0 && Clock::now() < deadline) {
    pollfd output = {.fd = child->out(), .events = POLLIN};
    const auto left = std::chrono::ceil<milliseconds>(deadline - Clock::now());
    poll(&output, 1, static_cast<int>(std::max(left, milliseconds(0)).count()));
    for (const std::string& line : child->ReadLines()) absl::StrAppend(&listing, line, "\n");
  }
  const std::optional<std::string> how = AwaitEnd(*child, deadline);
  if (how != "exited with status 0") {
    return absl::InternalError(
        absl::StrCat(worker_program, " --list-devices ", how.value_or("does not end")));
  }
  return ReadDevices(listing);
}

}  // namespace ringserve
