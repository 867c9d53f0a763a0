#include "client/ringctl/command.h"

#include <cstdio>
#include <string>

namespace ringserve {
namespace {

ExitCode ExitCodeFor(absl::StatusCode code) {
  switch (code) {
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kUnimplemented:
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kOutOfRange:
    case absl::StatusCode::kNotFound:
      return kExitRefused;
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kResourceExhausted:
      return kExitUnavailable;
    case absl::StatusCode::kDeadlineExceeded:
    case absl::StatusCode::kCancelled:
      return kExitDeadline;
    case absl::StatusCode::kUnauthenticated:
    case absl::StatusCode::kPermissionDenied:
      return kExitDenied;
    default:
      return kExitFailure;
  }
}

std::string Advice(absl::StatusCode code, const ClientOptions& client) {
  switch (code) {
    case absl::StatusCode::kUnavailable:
      return "is the server running at " + client.server +
             ", and are there workers? try `ringctl status`, or start a local cluster with "
             "`ringctl up "
             "--workers 2`";
    case absl::StatusCode::kResourceExhausted:
      return "the server is busy: try again later, or with more --retries";
    case absl::StatusCode::kInvalidArgument:
      return "correct the field that the message names; `ringctl plan` checks a request without "
             "sending it";
    case absl::StatusCode::kUnimplemented:
      return "this server does not serve the feature that the message names; `ringctl version` "
             "says which "
             "version it is";
    case absl::StatusCode::kFailedPrecondition:
      return "the request is larger than this server can take: use more workers, or workers with "
             "more "
             "--memory-bytes";
    case absl::StatusCode::kDeadlineExceeded:
      return "give it more time with --deadline, or look at what the cluster does with `ringctl "
             "status`";
    case absl::StatusCode::kUnauthenticated:
    case absl::StatusCode::kPermissionDenied:
      return "check --tls-ca, --tls-cert and --tls-key";
    case absl::StatusCode::kInternal:
      return "this is a bug of the service: the server's log has more under the request id";
    default:
      return "";
  }
}

}  // namespace

int Failed(const absl::Status& error, const ClientOptions& client) {
  std::fprintf(stderr, "ringctl: %s\n", error.ToString().c_str());
  const std::string advice = Advice(error.code(), client);
  if (!advice.empty()) std::fprintf(stderr, "ringctl: %s\n", advice.c_str());
  return ExitCodeFor(error.code());
}

int Misused(const absl::Status& error) {
  std::fprintf(stderr, "ringctl: %s\n", std::string(error.message()).c_str());
  return absl::IsInternal(error) ? kExitFailure : kExitUsage;
}

}  // namespace ringserve
