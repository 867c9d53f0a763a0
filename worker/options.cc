#include "worker/options.h"

#include <algorithm>
#include <cstdint>
#include <cstdio>

#include "proto/flags.h"
#include "proto/machine.h"
#include "proto/option_table.h"
#include "proto/protocol.h"
#include "worker/cuda_machine.h"
#include "worker/device.h"

namespace ringserve {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr int kMaxThreads = 1024;
constexpr int64_t kDayMs = 86'400'000;
constexpr int64_t kDaySeconds = 86'400;
constexpr char kFooter[] =
    "Exit codes: 0 left in good order after SIGTERM or SIGINT; 1 cannot listen, or another fault "
    "of\n"
    "this machine; 2 an option or a file it names is wrong; 3 left, but jobs were unfinished\n"
    "(--drain-s); 4 the device of --device cannot be served here: its driver is missing or too "
    "old,\n"
    "say; 5 the GPU failed, or its copies or exchanges hang: the process ended at once, and may "
    "be\n"
    "started anew; 128 + the signal's number at a second signal, which ends it at once.";

void SetDefaults(WorkerOptions& worker) {
  worker.coordinator = "127.0.0.1:7070";
  worker.device = "auto";
  worker.threads = std::min(AvailableThreads(), kMaxThreads);
  worker.version = RINGSERVE_VERSION;
}

void AddRoads(OptionTable& table, WorkerOptions& worker) {
  table.Text("coordinator", "ADDRESS", worker.coordinator,
             "HOST:PORT or unix:PATH of the coordinator");
  table.Text("listen", "ADDRESS", worker.listen,
             "HOST:PORT (0: any free port) or unix:PATH for the coordinator and other workers");
  table.Text("advertise", "ADDRESS", worker.advertise, "HOST:PORT or unix:PATH where they reach it")
      .shown = "as it listens";
  table.Switch("insecure", worker.insecure,
               "Listen beyond loopback without TLS: anyone who reaches it is served");
  AddTls(table, worker.tls);
  AddHealthListen(table, worker.health_listen);
  AddMetricsListen(table, worker.metrics_listen);
}

void AddShare(OptionTable& table, WorkerOptions& worker) {
  table.Text("device", "NAME", worker.device,
             "cpu, cuda:N, or auto: cuda:0 where that can be served, else cpu; see --list-devices");
  table
      .Whole("threads", 1, kMaxThreads, worker.threads,
             "Threads of the arithmetic; default: as many as this process may run at a time (its "
             "affinity, its cgroup's quota)")
      .shown = "all";
  table
      .Size("memory-bytes", 1, kMaxWorkerMemoryBytes, worker.memory_bytes,
            "What jobs may take together; default: half of what is available to this process (its "
            "cgroup's limit counts), or of the GPU's free memory")
      .shown = "half";
  table.Time<milliseconds>("exchange-deadline-ms", 1, kDayMs, worker.exchange_deadline,
                           "How long one step may wait for another worker, beyond the time that "
                           "the job has run so far");
  table.Time<seconds>("drain-s", 0, kDaySeconds, worker.drain,
                      "On SIGTERM, how long unfinished jobs may take to end");
}

}  // namespace

std::optional<int> ParseOptions(int argc, const char* const* argv, ProcessOptions& options) {
  SetDefaults(options.worker);
  OptionTable table({.name = "ringserve-worker",
                     .what = "A worker of ringserve: one device in the ring.",
                     .version = RINGSERVE_VERSION,
                     .footer = kFooter});
  AddRoads(table, options.worker);
  AddShare(table, options.worker);
  AddLog(table, options.log);
  AddDieWithParent(table, options.die_with_parent);
  table.Action("list-devices", "Say what --device may name on this machine, and end",
               [] { std::fputs(ListDevices(AvailableThreads(), AskCuda()).c_str(), stdout); });
  return table.Parse(argc, argv, [&] {
    const absl::Status status = CheckDevice(options.worker.device);
    return status.ok() ? CheckOptions(options.worker) : status;
  });
}

}  // namespace ringserve
