// ringserve-worker: options, what it computes on and exchanges by, and how the process ends.
#include <signal.h>

#include <chrono>
#include <climits>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <optional>
#include <string>
#include <thread>

#include <grpc/grpc.h>
#include <spdlog/spdlog.h>

#include "absl/status/status.h"
#include "proto/machine.h"
#include "proto/process.h"
#include "proto/transport.h"
#include "worker/comm/ring_service.h"
#include "worker/cuda_machine.h"
#include "worker/cuda_parts.h"
#include "worker/device.h"
#include "worker/host_memory.h"
#include "worker/options.h"
#include "worker/worker.h"

namespace ringserve {
namespace {

enum ExitCode : int {
  kExitOk = 0,
  kExitFailure = 1,
  kExitUsage = 2,
  kExitUnfinished = 3,
  kExitDevice = 4,
  kExitDeviceLost = 5
};

// Beyond --drain-s: for the tile in work and for the calls, which have been told to end.
constexpr std::chrono::seconds kLastGrace{10};

// LibTorch's threads must not spin while they wait: the workers of one machine would take each
// other's cores. Its OpenMP reads the environment once, when it is loaded, which is before main: so
// where nothing is said, this program says it and starts itself anew, in the same process.
void LetIdleThreadsSleep(char** argv) {
  const char* policy = std::getenv("OMP_WAIT_POLICY");
  if (policy != nullptr && *policy != '\0') return;
  setenv("OMP_WAIT_POLICY", "PASSIVE", 1);
  char path[PATH_MAX] = "";  // by its own name, which is what `ps` shows
  if (readlink("/proc/self/exe", path, sizeof(path) - 1) > 0) execv(path, argv);
  std::perror("ringserve-worker: cannot start anew with OMP_WAIT_POLICY=PASSIVE");
}

int Fail(const absl::Status& status) {
  std::fprintf(stderr, "ringserve-worker: %s\n", std::string(status.message()).c_str());
  return absl::IsInvalidArgument(status) ? kExitUsage : kExitFailure;
}

int Serve(const WorkerOptions& options, const Computing& computing, const Exchange& exchange,
          const sigset_t& signals) {
  absl::StatusOr<std::unique_ptr<Worker>> worker = Worker::Start(options, computing, exchange);
  if (!worker.ok()) return Fail(worker.status());
  std::printf("listening %s\n", (*worker)->listen_address().c_str());
  std::fflush(stdout);
  spdlog::info("listening address={} device={} threads={} memory_bytes={} version={}",
               (*worker)->listen_address(), options.device, options.threads, options.memory_bytes,
               options.version);

  int signal = 0;
  sigwait(&signals, &signal);
  spdlog::info("leaving signal={} drain_ms={}", strsignal(signal), options.drain.count());
  const std::chrono::milliseconds patience = options.drain + kLastGrace;
  std::thread(EndAtOnce, signals, patience, kExitUnfinished).detach();
  (*worker)->Leave();
  (*worker)->WaitUntilLeft(patience);
  const absl::Status farewell = (*worker)->farewell();
  worker->reset();
  return farewell.ok() ? kExitOk : kExitUnfinished;
}

int ServeOnCpu(WorkerOptions options, const sigset_t& signals) {
  if (options.memory_bytes == 0) options.memory_bytes = AvailableMemoryBytes() / 2;
  grpc_init();  // for good: gRPC's own end may wait seconds for a connection that is no more
  const absl::StatusOr<std::unique_ptr<RingService>> ring = RingService::Make(options.tls);
  if (!ring.ok()) return Fail(ring.status());
  const Exchange exchange = {.service = ring->get(),
                             .build = [&](const v1::Epoch& epoch, const EpochLine& line) {
                               line.built(absl::OkStatus());  // peers are dialled when needed
                               return (*ring)->Build(epoch);
                             }};
  return Serve(options, {.memory = std::make_shared<HostMemory>()}, exchange, signals);
}

// What a GPU may still touch can be neither given back nor used again: nothing is tidied up.
void EndWithoutDevice(const absl::Status& why) {
  spdlog::error("device_lost exit={} reason={}", static_cast<int>(kExitDeviceLost), why.ToString());
  spdlog::default_logger()->flush();
  std::_Exit(kExitDeviceLost);
}

int ServeOnGpu(int device, WorkerOptions options, const sigset_t& signals) {
  if (CheckListenAddress(options.listen, /*tls=*/{}, /*insecure=*/false).ok()) {
    setenv("NCCL_SOCKET_IFNAME", "=lo", /*replace=*/0);  // others of this machine alone
  } else if (options.tls.enabled()) {
    spdlog::warn("nccl_is_not_encrypted: K and V travel in the clear between workers on GPUs");
  }
  const absl::StatusOr<CudaParts> parts = MakeCudaParts(device, EndWithoutDevice);
  if (!parts.ok()) {
    Fail(parts.status());
    return kExitDevice;
  }
  if (options.memory_bytes == 0) options.memory_bytes = parts->free_bytes / 2;
  grpc_init();  // see above
  const Exchange exchange = {.build = [&](const v1::Epoch& epoch, const EpochLine& line) {
    return parts->exchange->Build(epoch, line);
  }};
  return Serve(options,
               {.memory = parts->memory, .block = parts->block, .device_lost = EndWithoutDevice},
               exchange, signals);
}

int Main(int argc, char** argv) {
  LetIdleThreadsSleep(argv);
  std::signal(SIGPIPE, SIG_IGN);  // whoever reads the log may go away
  ProcessOptions options;
  const std::optional<int> exit = ParseOptions(argc, argv, options);
  if (exit.has_value()) return *exit;
  WorkerOptions& worker = options.worker;
  const sigset_t signals = HoldEndSignals();  // before other threads run, the driver's among them
  const CudaMachine machine = worker.device == "cpu" ? CudaMachine() : AskCuda();
  const absl::StatusOr<std::string> device = ChooseDevice(worker.device, machine);
  if (!device.ok()) {
    Fail(device.status());
    return kExitDevice;
  }
  worker.device = *device;
  worker.gpu = FactsOf(*device, machine);
  const absl::Status status = options.die_with_parent ? DieWithParent() : absl::OkStatus();
  if (!status.ok()) return Fail(status);
  StartLog(options.log);
  RaiseFileLimit();
  const std::optional<int> gpu = CudaIndex(*device);
  if (machine.built && !gpu.has_value()) {
    spdlog::info("device=cpu reason=\"{}\"",
                 std::string(ChooseDevice("cuda:0", machine).status().message()));
  }
  return gpu.has_value() ? ServeOnGpu(*gpu, worker, signals) : ServeOnCpu(worker, signals);
}

}  // namespace
}  // namespace ringserve

int main(int argc, char** argv) { return ringserve::Main(argc, argv); }
