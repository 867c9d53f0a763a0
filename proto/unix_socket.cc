#include "proto/unix_socket.h"

#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace ringserve {

absl::Status CheckNobodyListens(const std::string& address) {
  constexpr absl::string_view kUnix = "unix:";
  if (!absl::StartsWith(address, kUnix)) return absl::OkStatus();
  const std::string path = address.substr(kUnix.size());
  sockaddr_un name = {};
  name.sun_family = AF_UNIX;
  if (path.size() >= sizeof(name.sun_path)) return absl::OkStatus();  // gRPC refuses it
  std::copy(path.begin(), path.end(), name.sun_path);
  const int probe = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (probe < 0) return absl::OkStatus();
  const bool taken = connect(probe, reinterpret_cast<const sockaddr*>(&name), sizeof(name)) == 0 ||
                     errno == EAGAIN;  // its queue of connections is full
  close(probe);
  if (!taken) return absl::OkStatus();
  return absl::UnavailableError(
      absl::StrCat("cannot listen on ", address, ": another process does"));
}

}  // namespace ringserve
