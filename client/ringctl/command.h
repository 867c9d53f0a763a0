// What the subcommands of ringctl share: how one is registered, where the server is, how a run
// ends. Each subcommand is one file with one function Add<Name>Command; nothing here knows what
// they do.
#pragma once

#include <functional>
#include <string>

#include "absl/status/status.h"
#include "ringserve/client.h"

namespace CLI {
class App;
}

namespace ringserve {

// How ringctl ends; printed by `ringctl --help`.
enum ExitCode : int {
  kExitOk = 0,
  kExitFailure = 1,  // a fault of the service or of this machine (INTERNAL, DATA_LOSS, ...)
  kExitUsage = 2,    // command line or local file wrong; nothing was sent
  kExitRefused =
      3,  // the server refuses the request as it is (INVALID_ARGUMENT, UNIMPLEMENTED, ...)
  kExitUnavailable = 4,  // no server, no or too few workers, queue full: worth another try
  kExitDeadline = 5,     // DEADLINE_EXCEEDED, CANCELLED
  kExitWrong = 6,        // an answer came and is wrong, or cannot be compared
  kExitDenied = 7,       // UNAUTHENTICATED, PERMISSION_DENIED
};

// The options given before or after the subcommand: --server, --tls-cert, --tls-key, --tls-ca.
struct Invocation {
  ClientOptions client;
  // Set by the callback of the subcommand that was named; main calls it once, after parsing, and
  // exits with what it returns. A subcommand runs nothing inside CLI11's callbacks: exceptions are
  // theirs.
  std::function<int()> run;
};

// Each adds a subcommand to `app`; `invocation` outlives it. The pattern:
//
//   void AddStatusCommand(CLI::App& app, Invocation& invocation) {
//     auto options = std::make_shared<StatusOptions>();
//     CLI::App* command = app.add_subcommand("status", "...");
//     command->add_flag("--json", options->json, "...");
//     command->callback([options, &invocation] {
//       invocation.run = [options, &invocation] { return RunStatus(*options, invocation.client); };
//     });
//   }
void AddAttendCommand(CLI::App& app, Invocation& invocation);
void AddPlanCommand(CLI::App& app, Invocation& invocation);
void AddStatusCommand(CLI::App& app, Invocation& invocation);
void AddBenchCommand(CLI::App& app, Invocation& invocation);
void AddVersionCommand(CLI::App& app, Invocation& invocation);
void AddUpCommand(CLI::App& app, Invocation& invocation);
void AddDemoCommand(CLI::App& app, Invocation& invocation);
void AddSelftestCommand(CLI::App& app, Invocation& invocation);

// Prints "ringctl: CODE: message" and what to do next on stderr; returns the exit code for `error`,
// which is not OK. Failed: the answer of a call to `client.server`. Misused: command line or local
// file, kExitUsage; INTERNAL, which is neither's fault: kExitFailure.
int Failed(const absl::Status& error, const ClientOptions& client);
int Misused(const absl::Status& error);

}  // namespace ringserve
