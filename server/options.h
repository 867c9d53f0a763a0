// The command line of ringserve-server: every option is a flag and an environment variable
// (--max-queued-jobs, RINGSERVE_MAX_QUEUED_JOBS). One place for their names, defaults, limits and
// the sentence that explains each.
#pragma once

#include <chrono>
#include <optional>
#include <string>

#include "proto/log.h"
#include "proto/transport.h"
#include "server/attend_calls.h"
#include "server/coordinator.h"

namespace ringserve {

struct ServerOptions {
  std::string listen = "127.0.0.1:7070";
  TlsFiles tls;
  bool insecure = false;
  CoordinatorOptions coordinator;
  AttendOptions attend;
  std::chrono::milliseconds drain{30'000};
  bool die_with_parent = false;
  LogOptions log;
};

inline constexpr int kExitBadOption = 2;

// Fills `options` from the arguments, then the environment. Nothing: go on. Else the process is to
// exit with this status at once: 0 after --help and --version, kExitBadOption after one line on
// stderr that names flag, value and limit.
std::optional<int> ParseOptions(int argc, const char* const* argv, ServerOptions& options);

}  // namespace ringserve
