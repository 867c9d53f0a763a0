#include <algorithm>
#include <cstdlib>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <CLI/CLI.hpp>

#include "absl/status/statusor.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "client/ringctl/command.h"
#include "client/ringctl/local_cluster.h"
#include "client/ringctl/machine_devices.h"
#include "proto/machine.h"
#include "proto/protocol.h"
#include "proto/transport.h"

namespace ringserve {
namespace {

// What jobs may take altogether: a share of this machine's memory that is free now, or of a GPU's
// whole memory.
constexpr double kMemoryShare = 0.5;

// Without it NCCL refuses two ranks on one GPU.
constexpr char kSharedGpuVariable[] = "NCCL_MULTI_RANK_GPU_ENABLE";
constexpr int kCpuWorkers = 2;

struct UpOptions {
  std::optional<int> workers;
  std::string device;  // empty: as RINGSERVE_DEVICE says; never once RunUp has begun
  int threads = 0;     // 0: the cores shared out
  std::string listen = "127.0.0.1:7070";
  uint64_t memory_bytes = 0;  // 0: the memory shared out
  bool insecure = false;
  bool until_eof = false;
  std::string log_level;
};

// The variable of ringserve-worker, whose values it takes, and "cuda".
constexpr char kDeviceVariable[] = "RINGSERVE_DEVICE";

// Why it names no devices; empty: it does. As CLI11 wants it.
std::string DeviceError(const std::string& device) {
  if (device == "auto" || device == "cpu" || device == "cuda" ||
      absl::StartsWith(device, "cuda:")) {
    return "";
  }
  return absl::StrCat("is '", device, "': must be auto, cpu, cuda or cuda:N");
}

// What jobs may take on each of `workers` that share `gpus`: as much of every one as of the least.
absl::StatusOr<uint64_t> ShareOfGpu(const std::vector<Gpu>& gpus, int workers) {
  const int on_one = (workers + static_cast<int>(gpus.size()) - 1) / static_cast<int>(gpus.size());
  uint64_t least = gpus[0].memory_bytes;
  for (const Gpu& gpu : gpus) least = std::min(least, gpu.memory_bytes);
  if (least > 0) return static_cast<uint64_t>(static_cast<double>(least) * kMemoryShare / on_one);
  return absl::InvalidArgumentError(
      absl::StrCat("--workers ", workers, " share ", gpus.size(),
                   " GPUs of unknown memory: say with --memory-bytes what each may take"));
}

void ShareOutCpu(const UpOptions& options, LocalClusterOptions& cluster) {
  if (options.device == "cpu") cluster.devices = {"cpu"};
  cluster.workers = options.workers.value_or(kCpuWorkers);
  if (cluster.memory_bytes == 0) {
    cluster.memory_bytes = static_cast<uint64_t>(static_cast<double>(AvailableMemoryBytes()) *
                                                 kMemoryShare / cluster.workers);
  }
}

absl::Status ShareOutGpus(const UpOptions& options, const std::vector<Gpu>& gpus,
                          LocalClusterOptions& cluster) {
  for (const Gpu& gpu : gpus) cluster.devices.push_back(gpu.name);
  cluster.workers = options.workers.value_or(static_cast<int>(gpus.size()));
  if (cluster.workers <= static_cast<int>(gpus.size())) return absl::OkStatus();
  setenv(kSharedGpuVariable, "1", 0);
  if (cluster.memory_bytes > 0) return absl::OkStatus();
  const absl::StatusOr<uint64_t> share = ShareOfGpu(gpus, cluster.workers);
  if (share.ok()) cluster.memory_bytes = *share;
  return share.status();
}

// Sets devices, workers and memory, each as asked or as this machine has them.
absl::Status ShareOut(const UpOptions& options, LocalClusterOptions& cluster) {
  if (options.device == "cpu") {
    ShareOutCpu(options, cluster);
    return absl::OkStatus();
  }
  const absl::StatusOr<MachineDevices> machine = AskDevices(cluster.worker_program);
  if (!machine.ok()) return machine.status();
  std::vector<Gpu> gpus = machine->gpus;
  if (absl::StartsWith(options.device, "cuda:")) {
    std::erase_if(gpus, [&](const Gpu& gpu) { return gpu.name != options.device; });
    if (gpus.empty() && !machine->gpus.empty()) {
      return absl::FailedPreconditionError(absl::StrCat(
          "--device ", options.device, ": `ringserve-worker --list-devices` offers no such GPU:\n",
          absl::StripSuffix(machine->listing, "\n")));
    }
  }
  if (!gpus.empty()) return ShareOutGpus(options, gpus, cluster);
  if (options.device == "auto") {
    ShareOutCpu(options, cluster);
    return absl::OkStatus();
  }
  return absl::FailedPreconditionError(
      absl::StrCat("--device ", options.device, ": ", machine->why_no_gpu));
}

int RunUp(UpOptions options, const ClientOptions& client) {
  if (options.device.empty()) {
    const char* const device = std::getenv(kDeviceVariable);
    options.device = device == nullptr || *device == '\0' ? "auto" : device;
    const std::string error = DeviceError(options.device);
    if (!error.empty()) {
      return Misused(absl::InvalidArgumentError(absl::StrCat(kDeviceVariable, " ", error)));
    }
  }
  LocalClusterOptions cluster = {
      .listen = options.listen,
      .threads = options.threads,
      .memory_bytes = options.memory_bytes,
      .tls = {.cert = client.tls_cert, .key = client.tls_key, .ca = client.tls_ca},
      .insecure = options.insecure,
      .until_eof = options.until_eof,
      .log_level = options.log_level};
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
  const absl::Status shared = ShareOut(options, cluster);
  if (!shared.ok()) return Misused(shared);
  if (cluster.threads == 0) cluster.threads = std::max(1, AvailableThreads() / cluster.workers);
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
      "variables as well,\nbut for addresses, threads and memory, which are shared out here.\n");
  command
      ->add_option("--workers", options->workers,
                   "How many worker processes (default: one for each GPU; without GPUs 2)")
      ->check(CLI::Range(1, kMaxRanks));
  command
      ->add_option("--device", options->device,
                   "cpu; cuda: worker i gets GPU i, from 0 again where there are more workers; "
                   "cuda:N: that GPU for all; auto: GPUs where there are any (default: "
                   "RINGSERVE_DEVICE, else auto)")
      ->check(DeviceError);
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
                   "is free, shared out; of a GPU's memory where workers share one; a GPU's only "
                   "worker: half of what it finds free)")
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
