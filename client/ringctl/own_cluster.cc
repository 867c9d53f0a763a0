#include "client/ringctl/own_cluster.h"

#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/time/clock.h"

namespace ringserve {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr absl::string_view kReady = "ready ";
constexpr off_t kLogEnd = 8'192;
// As `up` gives its processes, twice, and a little for itself.
constexpr milliseconds kEnd{12'000};
constexpr absl::Duration kEndPoll = absl::Milliseconds(5);

}  // namespace

absl::StatusOr<std::unique_ptr<OwnCluster>> OwnCluster::Start(const std::vector<std::string>& flags,
                                                              milliseconds patience) {
  std::error_code error;
  const auto program = std::filesystem::read_symlink("/proc/self/exe", error);
  if (error) return absl::InternalError(absl::StrCat("/proc/self/exe: ", error.message()));
  const int log = memfd_create("ringctl-up.log", MFD_CLOEXEC);
  if (log < 0) return absl::InternalError(absl::StrCat("memfd_create: ", std::strerror(errno)));
  std::vector<std::string> arguments = {"up", "--listen", "127.0.0.1:0", "--until-eof"};
  arguments.insert(arguments.end(), flags.begin(), flags.end());
  absl::StatusOr<Child> up = Child::Start(program.string(), arguments, Bond::kStandardInput, log);
  if (!up.ok()) {
    close(log);
    return up.status();
  }
  std::unique_ptr<OwnCluster> cluster(new OwnCluster(*std::move(up), log));
  const absl::Status ready = cluster->AwaitReady(patience);
  if (!ready.ok()) return ready;
  return cluster;
}

OwnCluster::~OwnCluster() {
  up_.Signal(SIGTERM);
  const Clock::time_point deadline = Clock::now() + kEnd;
  while (!up_.Ended().has_value() && Clock::now() < deadline) absl::SleepFor(kEndPoll);
  close(log_);
}

absl::Status OwnCluster::AwaitReady(milliseconds patience) {
  const Clock::time_point deadline = Clock::now() + patience;
  for (;;) {
    const auto left = std::chrono::ceil<milliseconds>(deadline - Clock::now());
    if (left <= milliseconds(0)) {
      return absl::DeadlineExceededError(absl::StrCat("a local cluster was not ready after ",
                                                      patience.count() / 1000, " s:\n", LogEnd()));
    }
    pollfd output = {.fd = up_.out(), .events = POLLIN};
    poll(&output, 1, static_cast<int>(left.count()));
    for (const std::string& line : up_.ReadLines()) {
      if (absl::StartsWith(line, kReady)) address_ = line.substr(kReady.size());
    }
    if (!address_.empty()) return absl::OkStatus();
    if (up_.out() >= 0) continue;
    return absl::FailedPreconditionError(
        absl::StrCat("a local cluster ended before it was ready:\n", LogEnd()));
  }
}

std::string OwnCluster::LogEnd() const {
  struct stat file = {};
  fstat(log_, &file);  // an lseek would move the writers' offset, too
  std::string text(static_cast<size_t>(std::min(file.st_size, kLogEnd)), '\0');
  const ssize_t count =
      pread(log_, text.data(), text.size(), file.st_size - static_cast<off_t>(text.size()));
  text.resize(static_cast<size_t>(std::max<ssize_t>(count, 0)));
  return text;
}

}  // namespace ringserve
