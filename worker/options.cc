#include "worker/options.h"

#include <algorithm>
#include <cctype>
#include <cstdint>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "proto/flags.h"
#include "proto/machine.h"
#include "proto/protocol.h"

namespace ringserve {
namespace {

constexpr int kMaxThreads = 1024;
constexpr int64_t kMaxMilliseconds = 24LL * 3600 * 1000;

// Binds a duration in `Unit`, from `least` to a day.
template <typename Unit>
CLI::Option* AddDuration(CLI::App& app, const char* flag, std::chrono::milliseconds& value,
                         int64_t least, const char* what) {
  constexpr int64_t kMilliseconds = std::chrono::milliseconds(Unit(1)).count();
  const int64_t most = kMaxMilliseconds / kMilliseconds;
  return app
      .add_option_function<int64_t>(
          flag, [&value](const int64_t& count) { value = Unit(count); }, what)
      ->check(CLI::Range(least, most))
      ->default_str(absl::StrCat(value.count() / kMilliseconds));
}

}  // namespace

void AddFlags(CLI::App& app, ProcessOptions& options) {
  WorkerOptions& worker = options.worker;
  worker.coordinator = "127.0.0.1:7070";
  worker.device = "auto";
  worker.threads = std::min(AvailableThreads(), kMaxThreads);
  worker.memory_bytes = AvailableMemoryBytes() / 2;

  app.add_option("--coordinator", worker.coordinator, "HOST:PORT or unix:PATH of the coordinator")
      ->envname("RINGSERVE_COORDINATOR")
      ->capture_default_str();
  app.add_option("--listen", worker.listen,
                 "HOST:PORT (0: any free port) or unix:PATH for the coordinator and other workers")
      ->envname("RINGSERVE_LISTEN")
      ->capture_default_str();
  app.add_option("--advertise", worker.advertise,
                 "HOST:PORT or unix:PATH where they reach it; default: as it listens")
      ->envname("RINGSERVE_ADVERTISE");
  app.add_option("--device", worker.device, "cpu, or auto: the best there is")
      ->envname("RINGSERVE_DEVICE")
      ->capture_default_str();
  app.add_option(
         "--threads", worker.threads,
         "Threads of the arithmetic; default: as many as this process may run at a time (its "
         "affinity, its cgroup's quota)")
      ->envname("RINGSERVE_THREADS")
      ->check(CLI::Range(1, kMaxThreads))
      ->capture_default_str();
  app.add_option("--memory-bytes", worker.memory_bytes,
                 "What jobs may take together (16GiB is understood); default: half of what is "
                 "available to this process (its cgroup's limit counts)")
      ->envname("RINGSERVE_MEMORY_BYTES")
      ->transform(CLI::AsSizeValue(false))
      ->check(CLI::Range(uint64_t{1}, kMaxWorkerMemoryBytes))
      ->capture_default_str();
  AddDuration<std::chrono::milliseconds>(
      app, "--exchange-deadline-ms", worker.exchange_deadline, 1,
      "How long one step may wait for another worker, beyond the time that the job has run so far")
      ->envname("RINGSERVE_EXCHANGE_DEADLINE_MS");
  AddDuration<std::chrono::seconds>(app, "--drain-s", worker.drain, 0,
                                    "On SIGTERM, how long unfinished jobs may take to end")
      ->envname("RINGSERVE_DRAIN_S");
  app.add_flag("--insecure", worker.insecure,
               "Listen beyond loopback without TLS: anyone who reaches it is served")
      ->envname("RINGSERVE_INSECURE");
  app.add_flag("--die-with-parent", options.die_with_parent,
               "End (SIGKILL) with the thread that started this process")
      ->envname("RINGSERVE_DIE_WITH_PARENT");
  AddTlsFlags(app, worker.tls);
  AddLogFlags(app, options.log);
}

absl::Status ChooseDevice(std::string& device) {
  if (device == "auto") device = "cpu";
  if (device == "cpu") return absl::OkStatus();
  const std::string index = device.substr(std::min(device.size(), device.find(':') + 1));
  if (device == "cuda" || (absl::StartsWith(device, "cuda:") && !index.empty() &&
                           std::all_of(index.begin(), index.end(), ::isdigit))) {
    return absl::UnimplementedError(
        absl::StrCat("--device ", device, " is not served yet: must be cpu or auto"));
  }
  return absl::InvalidArgumentError(
      absl::StrCat("--device is '", device, "': must be auto, cpu or cuda:N"));
}

}  // namespace ringserve
