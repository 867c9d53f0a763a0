#include "proto/process.h"

#include <signal.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>

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

}  // namespace ringserve
