#include <algorithm>
#include <memory>
#include <string>

#include <CLI/CLI.hpp>

#include "client/ringctl/command.h"
#include "client/ringctl/local_cluster.h"
#include "proto/machine.h"
#include "proto/protocol.h"
#include "proto/transport.h"

namespace ringserve {
namespace {

// What jobs may take on this machine altogether: a share of the memory that is free now.
constexpr double kMemoryShare = 0.5;

struct UpOptions {
  int workers = 2;
  int threads = 0;  // 0: the cores shared out
  std::string listen = "127.0.0.1:7070";
  uint64_t memory_bytes = 0;  // 0: the memory shared out
  bool insecure = false;
  bool until_eof = false;
  std::string log_level;
};

int RunUp(const UpOptions& options, const ClientOptions& client) {
  LocalClusterOptions cluster = {
      .listen = options.listen,
      .workers = options.workers,
      .threads = options.threads,
      .memory_bytes = options.memory_bytes,
      .tls = {.cert = client.tls_cert, .key = client.tls_key, .ca = client.tls_ca},
      .insecure = options.insecure,
      .until_eof = options.until_eof,
      .log_level = options.log_level};
  if (cluster.threads == 0) {
    cluster.threads = std::max(1, AvailableThreads() / options.workers);
  }
  if (cluster.memory_bytes == 0) {
    cluster.memory_bytes = static_cast<uint64_t>(static_cast<double>(AvailableMemoryBytes()) *
                                                 kMemoryShare / options.workers);
  }
  const absl::Status address = CheckListenAddress(cluster.listen, cluster.tls, cluster.insecure);
  if (!address.ok()) return Misused(address);
  if (cluster.tls.enabled() &&
      (cluster.tls.cert.empty() || cluster.tls.key.empty() || cluster.tls.ca.empty())) {
    return Misused(absl::InvalidArgumentError(
        "--tls-cert, --tls-key and --tls-ca belong together: the members of a cluster serve one "
        "another"));
  }
  for (const auto& [name, program] : {std::pair{"ringserve-server", &cluster.server_program},
                                      {"ringserve-worker", &cluster.worker_program}}) {
    absl::StatusOr<std::string> found = FindProgram(name);
    if (!found.ok()) return Misused(found.status());
    *program = *std::move(found);
  }
  const absl::Status status = LocalCluster(std::move(cluster)).Run();
  if (status.ok()) return kExitOk;
  std::fprintf(stderr, "ringctl up: %s\n", std::string(status.message()).c_str());
  return kExitFailure;
}

}  // namespace

void AddUpCommand(CLI::App& app, Invocation& invocation) {
  auto options = std::make_shared<UpOptions>();
  CLI::App* command = app.add_subcommand(
      "up", "Run a coordinator and workers on this machine, in the foreground, until Ctrl-C");
  command->footer(
      "Prints each process's role and pid, and `ready ADDRESS` once all workers have joined. What "
      "dies is started\nagain. The processes log to stderr and obey their own RINGSERVE_* "
      "variables as well.\n");
  command->add_option("--workers", options->workers, "How many worker processes")
      ->check(CLI::Range(1, kMaxRanks))
      ->capture_default_str();
  command
      ->add_option("--threads", options->threads,
                   "Threads of each worker (default: the cores shared out)")
      ->check(CLI::Range(1, 1024));
  command
      ->add_option("--listen", options->listen,
                   "HOST:PORT or unix:PATH of the coordinator; port 0: any")
      ->capture_default_str();
  command
      ->add_option("--memory-bytes", options->memory_bytes,
                   "What jobs may take on each worker (16GiB is understood; default: half of what "
                   "is free, shared out)")
      ->transform(CLI::AsSizeValue(false))
      ->check(CLI::Range(uint64_t{1}, kMaxWorkerMemoryBytes));
  command->add_flag("--insecure", options->insecure,
                    "Serve beyond loopback without TLS: anyone who can reach the address");
  command->add_flag("--until-eof", options->until_eof,
                    "End with standard input, too: when whoever writes to it is gone");
  command
      ->add_option("--log-level", options->log_level,
                   "trace, debug, info, warn, error or off: what the processes log")
      ->check(CLI::IsMember({"trace", "debug", "info", "warn", "error", "off"}));
  command->callback([options, &invocation] {
    invocation.run = [options, &invocation] { return RunUp(*options, invocation.client); };
  });
}

}  // namespace ringserve
