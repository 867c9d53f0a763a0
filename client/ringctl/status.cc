#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/ringctl/command.h"
#include "client/ringctl/format.h"
#include "client/ringctl/seconds.h"
#include "client/ringctl/status_json.h"
#include "client/ringctl/text_table.h"

namespace ringserve {
namespace {

using nlohmann::ordered_json;

std::string WorkersText(const v1::GetClusterResponse& cluster, const std::string& server) {
  if (cluster.workers().empty()) {
    return absl::StrCat(
        "no workers: nothing can be computed until one joins (ringserve-worker "
        "--coordinator ",
        server, "), or try a local cluster: ringctl up --workers 2\n");
  }
  std::vector<std::vector<std::string>> rows = {{"WORKER", "ADDRESS", "DEVICE", "THREADS",
                                                 "RESERVED", "MEMORY", "SILENT", "JOB", "PID",
                                                 "VERSION", "LIBTORCH"}};
  const bool gpus =
      std::any_of(cluster.workers().begin(), cluster.workers().end(),
                  [](const v1::Worker& worker) { return !worker.device_name().empty(); });
  if (gpus) rows[0].insert(rows[0].end(), {"GPU", "DRIVER", "CUDA", "NCCL"});
  for (const v1::Worker& worker : cluster.workers()) {
    rows.push_back({worker.id(), worker.address(), worker.device(), absl::StrCat(worker.threads()),
                    BytesText(worker.reserved_bytes()), BytesText(worker.memory_bytes()),
                    SecondsText(worker.silent_seconds()),
                    worker.job() == 0 ? "idle" : absl::StrCat(worker.job()),
                    absl::StrCat(worker.pid()), worker.version(), worker.libtorch()});
    if (gpus) {
      rows.back().insert(rows.back().end(),
                         {worker.device_name(), worker.driver(), worker.cuda(), worker.nccl()});
    }
  }
  return TableText(rows);
}

std::string StatusText(const v1::GetClusterResponse& cluster, const std::string& server) {
  const v1::Limits& limits = cluster.limits();
  const v1::Measurements& measured = cluster.measurements();
  std::string text =
      absl::StrCat("server     ", server, ", version ", cluster.version(),
                   cluster.draining() ? ", draining: new requests are refused" : "", "\n",
                   "epoch      ", cluster.epoch().empty() ? "none" : cluster.epoch(), "\n",
                   "jobs       ", cluster.queued_jobs(), " queued, ", cluster.unfinished_jobs(),
                   " unfinished\n\n", WorkersText(cluster, server), "\n");
  absl::StrAppend(
      &text, "limits     at most ", limits.max_queued_jobs(), " jobs queued, ",
      BytesText(limits.max_header_bytes()), " a header, ", BytesText(limits.max_message_bytes()),
      " a message, ", BytesText(limits.max_bias_bytes()), " a bias, ",
      SecondsText(limits.max_deadline_seconds()), " a call; at least ",
      BytesText(static_cast<uint64_t>(limits.min_rate_bytes_per_second())), "/s from a client\n");
  absl::StrAppendFormat(&text,
                        "planner    %.3g pairs/s a worker, %s/s and %s between two, %s for each "
                        "further worker\n",
                        measured.pairs_per_second(),
                        BytesText(static_cast<uint64_t>(measured.link_bytes_per_second())),
                        SecondsText(measured.link_latency_seconds()),
                        SecondsText(measured.rank_overhead_seconds()));
  return text;
}

struct StatusOptions {
  bool json = false;
  bool watch = false;
  double interval_seconds = 1;
};

std::string Shown(const v1::GetClusterResponse& cluster, bool json, const std::string& server) {
  return json ? absl::StrCat(StatusJson(cluster).dump(), "\n") : StatusText(cluster, server);
}

// Until whoever reads it goes away, or a signal comes. A server that does not answer may be back.
int Watch(const StatusOptions& options, Client& client, const std::string& server) {
  const char* begin = options.json ? "" : isatty(STDOUT_FILENO) ? "\x1b[H\x1b[2J" : "\n";
  for (;;) {
    const absl::StatusOr<v1::GetClusterResponse> cluster = client.GetCluster();
    if (cluster.ok()) {
      std::printf("%s%s", begin, Shown(*cluster, options.json, server).c_str());
    } else if (options.json) {
      const ordered_json error = {{"error", cluster.status().ToString()}};
      std::printf("%s\n",
                  error.dump(-1, ' ', false, ordered_json::error_handler_t::replace).c_str());
    } else {
      std::printf("%sserver     %s does not answer: %s\n", begin, server.c_str(),
                  cluster.status().ToString().c_str());
    }
    if (std::fflush(stdout) != 0) return kExitFailure;
    std::this_thread::sleep_for(Milliseconds(options.interval_seconds));
  }
}

int RunStatus(const StatusOptions& options, const ClientOptions& to) {
  absl::StatusOr<std::unique_ptr<Client>> client = Client::Connect(to);
  if (!client.ok()) return Misused(client.status());
  if (options.watch) return Watch(options, **client, to.server);
  const absl::StatusOr<v1::GetClusterResponse> cluster = (*client)->GetCluster();
  if (!cluster.ok()) return Failed(cluster.status(), to);
  std::printf("%s", Shown(*cluster, options.json, to.server).c_str());
  return kExitOk;
}

}  // namespace

void AddStatusCommand(CLI::App& app, Invocation& invocation) {
  auto options = std::make_shared<StatusOptions>();
  CLI::App* command = app.add_subcommand("status", "Show the cluster: server, workers, jobs");
  command->add_flag("--json", options->json, "One JSON object; with --watch, one in each line");
  CLI::Option* watch =
      command->add_flag("--watch", options->watch, "Show it again and again, until interrupted");
  command->add_option("--interval", options->interval_seconds, "Seconds between two looks")
      ->check(SecondsRange())
      ->needs(watch)
      ->capture_default_str();
  command->callback([options, &invocation] {
    invocation.run = [options, &invocation] { return RunStatus(*options, invocation.client); };
  });
}

}  // namespace ringserve
