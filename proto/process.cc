#include "proto/process.h"

#include <signal.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <ctime>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace ringserve {

absl::Status DieWithParent() {
  pid_t parent = getppid();
  if (const char* told = std::getenv(kParentPidVariable); told != nullptr && *told != '\0') {
    if (!absl::SimpleAtoi(told, &parent)) {
      return absl::FailedPreconditionError(
          absl::StrCat(kParentPidVariable, " is '", told, "': not a process id"));
    }
  }
  if (prctl(PR_SET_PDEATHSIG, SIGKILL) != 0) {
    return absl::InternalError(absl::StrCat("prctl(PR_SET_PDEATHSIG): ", std::strerror(errno)));
  }
  // A parent that died before the signal was asked for will never send it.
  if (const pid_t now = getppid(); now != parent) {
    return absl::FailedPreconditionError(
        absl::StrCat("parent process ", parent, " has ended: the parent is now ", now));
  }
  return absl::OkStatus();
}

sigset_t HoldEndSignals() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  return signals;
}

void EndAtOnce(sigset_t signals, std::chrono::milliseconds patience, int late_code) {
  using std::chrono::steady_clock;
  const auto end = steady_clock::now() + patience;
  for (;;) {
    const auto left = std::max(end - steady_clock::now(), steady_clock::duration::zero());
    const auto seconds = std::chrono::floor<std::chrono::seconds>(left);
    const timespec wait = {.tv_sec = seconds.count(),
                           .tv_nsec = std::chrono::nanoseconds(left - seconds).count()};
    const int signal = sigtimedwait(&signals, nullptr, &wait);
    if (signal > 0) _exit(128 + signal);
    if (errno == EAGAIN) _exit(late_code);  // else interrupted, as by a debugger
  }
}

}  // namespace ringserve
