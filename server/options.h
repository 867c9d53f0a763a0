// What ringserve-server can be told: one place for the names of its options, their defaults, limits
// and the sentence that explains each.
#pragma once

#include <chrono>
#include <optional>
#include <string>

#include "proto/log.h"
#include "proto/option_table.h"
#include "proto/transport.h"
#include "server/attend_calls.h"
#include "server/coordinator.h"

namespace ringserve {

struct ServerOptions {
  std::string listen = "127.0.0.1:7070";
  TlsFiles tls;
  bool insecure = false;
  std::string health_listen, metrics_listen;  // empty: no such listener
  CoordinatorOptions coordinator;
  AttendOptions attend;
  std::chrono::milliseconds drain{30'000};
  bool die_with_parent = false;
  LogOptions log;
};

// Fills `options`, see OptionTable::Parse.
std::optional<int> ParseOptions(int argc, const char* const* argv, ServerOptions& options);

}  // namespace ringserve
