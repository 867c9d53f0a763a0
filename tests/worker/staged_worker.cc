// ringserve-worker as it is on a GPU, on the CPU: its jobs' tensors lie on a device that is none,
// strict and late (fake_copies.h), and everything comes and goes through staging. A fault ends it
// at once, and bytes that were not given back fail it at its end.
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <optional>

#include <grpc/grpc.h>
#include <unistd.h>

#include "proto/process.h"
#include "tests/support/wait.h"
#include "tests/worker/fake_copies.h"
#include "worker/comm/ring_service.h"
#include "worker/options.h"
#include "worker/staging.h"
#include "worker/worker.h"

namespace ringserve::test {
namespace {

int Main(int argc, char** argv) {
  ProcessOptions options;
  const std::optional<int> exit = ParseOptions(argc, argv, options);
  if (exit.has_value()) return *exit;
  WorkerOptions& worker_options = options.worker;
  worker_options.device = "cpu";
  if (worker_options.memory_bytes == 0) worker_options.memory_bytes = uint64_t{1} << 30;
  if (!DieWithParent().ok()) return 1;
  StartLog(options.log);
  const sigset_t signals = HoldEndSignals();
  grpc_init();
  const auto copies = std::make_shared<FakeCopies>(
      FakeCopies::Options{.by_itself = true,
                          .seed = static_cast<uint64_t>(getpid()),
                          .out_of_reach = false,
                          .abort_on_fault = true,
                          .device_bytes = worker_options.memory_bytes});
  auto memory = std::make_shared<Staging>(
      copies, StagingOptions{.pieces_in = 2, .pieces_out = 3, .device_lost = [](const auto& why) {
                               std::fprintf(stderr, "%s\n", why.ToString().c_str());
                               std::abort();
                             }});
  const auto ring = RingService::Make(worker_options.tls);
  auto worker = Worker::Start(
      worker_options, {.memory = memory},
      {.service = ring->get(), .build = [&](const v1::Epoch& epoch, const EpochLine& line) {
         line.built(absl::OkStatus());
         return (*ring)->Build(epoch);
       }});
  if (!worker.ok()) return 2;
  std::printf("listening %s\n", (*worker)->listen_address().c_str());
  std::fflush(stdout);
  int signal = 0;
  sigwait(&signals, &signal);
  (*worker)->Leave();
  (*worker)->WaitUntilLeft(kPatience);
  worker->reset();
  memory.reset();
  const bool clean =
      WaitUntil([&] { return copies->device_bytes() + copies->pinned_bytes() == 0; });
  return clean ? 0 : 1;
}

}  // namespace
}  // namespace ringserve::test

int main(int argc, char** argv) { return ringserve::test::Main(argc, argv); }
