// A worker: one device, one engine thread, one listener, one membership. The parts' wiring, the
// order in which they start and the order in which they end; the work is theirs.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include <grpcpp/grpcpp.h>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "proto/transport.h"
#include "worker/device.h"
#include "worker/seats.h"
#include "worker/tensor_memory.h"

namespace ringserve {

struct WorkerOptions {
  std::string coordinator;                    // HOST:PORT or unix:PATH
  std::string listen = "127.0.0.1:0";         // for the coordinator and other workers
  std::string health_listen, metrics_listen;  // empty: no such listener
  std::string advertise;       // where they reach it; empty: the bound listen address
  std::string device = "cpu";  // as LibTorch names it: cpu or cuda:N
  GpuFacts gpu;
  int threads = 1;            // of LibTorch
  uint64_t memory_bytes = 0;  // what jobs may take, > 0
  std::chrono::milliseconds exchange_deadline{30'000};
  std::chrono::milliseconds drain{30'000};
  std::string version;
  TlsFiles tls;
  bool insecure = false;
};

// INVALID_ARGUMENT: options that are wrong by themselves or contradict each other.
absl::Status CheckOptions(const WorkerOptions& options);

// How this worker exchanges K and V with the others: main.cc chooses. Outlives the worker.
struct Exchange {
  grpc::Service* service = nullptr;  // served beside Shard; nullptr: none is needed
  Seats::Build build;
};

class Block;

// What this worker computes on: main.cc chooses, by options.device.
struct Computing {
  std::shared_ptr<TensorMemory> memory;
  // As those of EngineOptions.
  std::shared_ptr<const Block> block;
  std::function<void(const absl::Status& why)> device_lost;
};

class Worker {
 public:
  // Listens, then begins to join: a coordinator that is not there yet is waited for.
  // INVALID_ARGUMENT: an option is wrong, or a TLS file. UNAVAILABLE: cannot listen.
  static absl::StatusOr<std::unique_ptr<Worker>> Start(const WorkerOptions& options,
                                                       Computing computing, Exchange exchange);

  // Ends everything at once: unfinished jobs fail. Waits for the end of the tile in work.
  virtual ~Worker() = default;

  virtual const std::string& listen_address() const = 0;  // with the actual port

  // Begins to go in good order: jobs may end, for at most options.drain. Any thread.
  virtual void Leave() = 0;

  // True as soon as it has left; false when `timeout` passed first.
  virtual bool WaitUntilLeft(std::chrono::milliseconds timeout) = 0;

  // Once it has left: OK if nothing was unfinished, else what became of it.
  virtual absl::Status farewell() const = 0;
};

}  // namespace ringserve
