#include "worker/worker.h"

#include <unistd.h>

#include <utility>

#include <grpcpp/ext/health_check_service_server_builder_option.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>
#include <spdlog/spdlog.h>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "proto/health_port.h"
#include "proto/metrics_port.h"
#include "proto/protocol.h"
#include "proto/unix_socket.h"
#include "worker/engine.h"
#include "worker/join_client.h"
#include "worker/memory_ledger.h"
#include "worker/metrics.h"
#include "worker/seats.h"
#include "worker/shard_service.h"

namespace ringserve {
namespace {

using std::chrono::milliseconds;

// A call that the coordinator has ended may still be on its way out when the next one comes in.
constexpr milliseconds kReservationPatience{2'000};
// How long a worker that ends waits for its calls, which have been told to end.
constexpr milliseconds kFarewell{2'000};

v1::Hello MakeHello(const WorkerOptions& options, const std::string& address) {
  v1::Hello hello;
  hello.set_protocol_version(kProtocolVersion);
  hello.set_address(address);
  hello.set_device(options.device);
  hello.set_threads(options.threads);
  hello.set_memory_bytes(options.memory_bytes);
  hello.set_version(options.version);
  hello.set_pid(getpid());
  hello.set_libtorch(LibTorchVersion());
  hello.set_device_name(options.gpu.name);
  hello.set_driver(options.gpu.driver);
  hello.set_cuda(options.gpu.cuda);
  hello.set_nccl(options.gpu.nccl);
  return hello;
}

class RunningWorker : public Worker {
 public:
  RunningWorker(const WorkerOptions& options, Computing computing, Exchange exchange)
      : exchange_service_(exchange.service),
        memory_(std::move(computing.memory)),
        seats_(std::move(exchange.build)),
        ledger_(MemoryLedger::Make(options.memory_bytes, kReservationPatience)),
        metrics_(options.version),
        shards_(
            {.engine = engine_,
             .memory = *memory_,
             .seats = seats_,
             .ledger = ledger_,
             .tls = options.tls,
             .epoch_broken = [this](const std::string& epoch,
                                    const absl::Status& why) { join_->EpochBroken(epoch, why); },
             .ran =
                 [this](const RunResult& result) {
                   metrics_.Ran(result.status, result.statistics);
                 }}),
        engine_({.threads = options.threads,
                 .exchange_deadline = options.exchange_deadline,
                 .device = options.device,
                 .block = std::move(computing.block),
                 .device_lost = std::move(computing.device_lost)}) {}

  // The membership first, and with it the communicators and calls: nothing may hold the server up.
  ~RunningWorker() override {
    if (join_ != nullptr) join_->Stop();
    shards_.RefuseNew();
    shards_.Drop(absl::UnavailableError("this worker shuts down"));
    if (server_ == nullptr) return;
    shards_.WaitIdle(kFarewell);
    server_->Shutdown(std::chrono::system_clock::now() + kFarewell);
  }

  absl::Status ListenForProbes(const std::string& address) {
    absl::StatusOr<std::unique_ptr<HealthPort>> port = HealthPort::Open(address);
    if (!port.ok()) {
      return absl::UnavailableError(absl::StrCat("--health-listen: ", port.status().message()));
    }
    health_port_ = *std::move(port);
    spdlog::info("health address={}", health_port_->address());
    return absl::OkStatus();
  }

  absl::Status ListenForScrapes(const std::string& address) {
    absl::StatusOr<std::unique_ptr<MetricsPort>> port =
        MetricsPort::Open(address, metrics_.Sources(ledger_));
    if (!port.ok()) {
      return absl::UnavailableError(absl::StrCat("--metrics-listen: ", port.status().message()));
    }
    metrics_port_ = *std::move(port);
    spdlog::info("metrics address={}", metrics_port_->address());
    return absl::OkStatus();
  }

  absl::Status Listen(const WorkerOptions& options,
                      const std::shared_ptr<grpc::ServerCredentials>& credentials) {
    const absl::Status free = CheckNobodyListens(options.listen);
    if (!free.ok()) return free;
    grpc::EnableDefaultHealthCheckService(true);
    grpc::ServerBuilder builder;
    ConfigureServer(builder);
    int port = 0;
    builder.AddListeningPort(options.listen, credentials, &port);
    builder.RegisterService(&shards_);
    if (exchange_service_ != nullptr) builder.RegisterService(exchange_service_);
    server_ = builder.BuildAndStart();
    if (server_ == nullptr || port == 0) {
      return absl::UnavailableError(absl::StrCat("cannot listen on ", options.listen));
    }
    SetServing(false);
    listen_address_ = BoundAddress(options.listen, port);
    return absl::OkStatus();
  }

  void Join(const WorkerOptions& options,
            const std::shared_ptr<grpc::ChannelCredentials>& credentials) {
    JoinOptions join = {.coordinator = options.coordinator,
                        .credentials = credentials,
                        .hello = MakeHello(options, options.advertise.empty() ? listen_address_
                                                                              : options.advertise),
                        .drain = options.drain};
    JoinClient::Hooks hooks = {
        .progress = [this] { return engine_.Progress(); },
        .on_joined =
            [this](bool joined) {
              SetServing(joined);
              metrics_.Joined(joined);
            },
        .drop_all = [this](const absl::Status& why) { shards_.Drop(why); },
        .drop_epoch = [this](const std::string& epoch,
                             const absl::Status& why) { shards_.DropEpoch(epoch, why); },
        .recall = [this](uint64_t job,
                         const absl::Status& why) { return shards_.Recall(job, why); }};
    join_ = std::make_unique<JoinClient>(std::move(join), seats_, std::move(hooks));
  }

  const std::string& listen_address() const override { return listen_address_; }
  void Leave() override { join_->Leave(); }
  bool WaitUntilLeft(milliseconds timeout) override { return join_->WaitUntilLeft(timeout); }
  absl::Status farewell() const override { return join_->farewell(); }

 private:
  // A worker that is no member serves nobody.
  void SetServing(bool serving) {
    server_->GetHealthCheckService()->SetServingStatus(serving);
    if (health_port_ != nullptr) health_port_->SetServing(serving);
  }

  grpc::Service* const exchange_service_;
  const std::shared_ptr<TensorMemory> memory_;
  std::string listen_address_;
  Seats seats_;
  std::unique_ptr<JoinClient> join_;
  const std::shared_ptr<MemoryLedger> ledger_;
  WorkerMetrics metrics_;
  ShardService shards_;
  Engine engine_;  // its thread calls into all of the above
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<HealthPort> health_port_;
  std::unique_ptr<MetricsPort> metrics_port_;
};

}  // namespace

absl::Status CheckOptions(const WorkerOptions& options) {
  absl::Status status = CheckListenAddress(options.listen, options.tls, options.insecure);
  if (!status.ok()) {
    return absl::InvalidArgumentError(absl::StrCat("--listen: ", status.message()));
  }
  status = CheckPlaintextAddress("--health-listen", options.health_listen);
  if (status.ok()) status = CheckMetricsAddress("--metrics-listen", options.metrics_listen);
  if (!status.ok()) return status;
  if (options.tls.enabled() && options.tls.ca.empty()) {
    return absl::InvalidArgumentError(
        "--tls-ca is missing: under TLS a worker serves only clients whose certificates it can "
        "verify");
  }
  const bool anywhere =
      absl::StartsWith(options.listen, "0.0.0.0:") || absl::StartsWith(options.listen, "[::]:");
  if (anywhere && options.advertise.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--advertise is missing: others cannot reach --listen ", options.listen, " as it is"));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Worker>> Worker::Start(const WorkerOptions& options,
                                                      Computing computing, Exchange exchange) {
  absl::Status status = CheckOptions(options);
  if (!status.ok()) return status;
  if (options.memory_bytes == 0) {
    return absl::InvalidArgumentError(
        "--memory-bytes is 0: must be positive (the system does not say how much is available)");
  }
  const auto server_credentials = MakeServerCredentials(options.tls);
  if (!server_credentials.ok()) return server_credentials.status();
  const auto channel_credentials = MakeChannelCredentials(options.tls);
  if (!channel_credentials.ok()) return channel_credentials.status();
  auto worker = std::make_unique<RunningWorker>(options, std::move(computing), std::move(exchange));
  if (!options.health_listen.empty()) status = worker->ListenForProbes(options.health_listen);
  if (status.ok() && !options.metrics_listen.empty()) {
    status = worker->ListenForScrapes(options.metrics_listen);
  }
  if (status.ok()) status = worker->Listen(options, *server_credentials);
  if (!status.ok()) return status;
  worker->Join(options, *channel_credentials);
  return worker;
}

}  // namespace ringserve
