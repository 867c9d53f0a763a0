// ringserve-server: the coordinator's parts, wired; how the process begins and how it ends.
#include <malloc.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <thread>

#include <google/protobuf/message.h>
#include <grpcpp/ext/health_check_service_server_builder_option.h>
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>
#include <spdlog/spdlog.h>

#include "absl/strings/str_cat.h"
#include "grpc/health/v1/health.pb.h"
#include "proto/health_port.h"
#include "proto/metrics_port.h"
#include "proto/process.h"
#include "proto/transport.h"
#include "proto/unix_socket.h"
#include "server/attend_calls.h"
#include "server/attention_service.h"
#include "server/cluster_service.h"
#include "server/coordinator.h"
#include "server/metrics.h"
#include "server/options.h"

namespace ringserve {
namespace {

using std::chrono::milliseconds;

enum ExitCode : int { kExitOk = 0, kExitFailure = 1, kExitUnfinished = 3 };

// How long calls that have been told to end are waited for, and then their transport.
constexpr milliseconds kFarewell{2'000};
// Beyond --drain-s: when the process ends whatever hangs.
constexpr std::chrono::seconds kLastGrace{10};

// The standard health service answers for "" and for the public service alike; the probes' port, if
// there is one, says the same.
class Health {
 public:
  absl::Status Listen(const std::string& address) {
    absl::StatusOr<std::unique_ptr<HealthPort>> port = HealthPort::Open(address);
    if (!port.ok())
      return absl::UnavailableError(absl::StrCat("--health-listen: ", port.status().message()));
    spdlog::info("health address={}", (*port)->address());
    absl::MutexLock lock(&mu_);
    port_ = *std::move(port);
    return absl::OkStatus();
  }
  void Attach(grpc::HealthCheckServiceInterface* service) {
    absl::MutexLock lock(&mu_);
    service_ = service;
    SetLocked(false);
  }
  void Set(bool serving) {
    absl::MutexLock lock(&mu_);
    if (service_ != nullptr) SetLocked(serving);
    if (port_ != nullptr) port_->SetServing(serving);
  }
  void Detach() {
    absl::MutexLock lock(&mu_);
    service_ = nullptr;
  }

 private:
  void SetLocked(bool serving) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    service_->SetServingStatus(serving);
    service_->SetServingStatus("ringserve.v1.Attention", serving);
  }

  absl::Mutex mu_;
  grpc::HealthCheckServiceInterface* service_ ABSL_GUARDED_BY(mu_) = nullptr;
  std::unique_ptr<HealthPort> port_ ABSL_GUARDED_BY(mu_);
};

class Server {
 public:
  Server(const ServerOptions& options, std::shared_ptr<grpc::ChannelCredentials> to_workers)
      : coordinator_(options.coordinator),
        calls_(coordinator_, std::move(to_workers), WithMetrics(options.attend)),
        attention_(coordinator_, calls_),
        cluster_(coordinator_, {.tls = options.tls}) {}

  absl::Status Listen(const std::string& address,
                      const std::shared_ptr<grpc::ServerCredentials>& credentials) {
    const absl::Status free = CheckNobodyListens(address);
    if (!free.ok()) return absl::UnavailableError(absl::StrCat("--listen: ", free.message()));
    grpc::EnableDefaultHealthCheckService(true);
    grpc::reflection::InitProtoReflectionServerBuilderPlugin();
    google::protobuf::LinkMessageReflection<grpc::health::v1::HealthCheckRequest>();
    grpc::ServerBuilder builder;
    ConfigureServer(builder);
    int port = 0;
    builder.AddListeningPort(address, credentials, &port);
    builder.RegisterService(&attention_);
    builder.RegisterService(&cluster_);
    server_ = builder.BuildAndStart();
    if (server_ == nullptr || port == 0) {
      return absl::UnavailableError(absl::StrCat("--listen: cannot listen on ", address));
    }
    address_ = BoundAddress(address, port);
    health_.Attach(server_->GetHealthCheckService());
    coordinator_.OnServing([this](bool serving) { health_.Set(serving); });
    return absl::OkStatus();
  }

  // Probes are answered before anybody is served.
  absl::Status ListenForProbes(const std::string& health_address) {
    return health_address.empty() ? absl::OkStatus() : health_.Listen(health_address);
  }

  absl::Status ListenForScrapes(const std::string& metrics_address) {
    if (metrics_address.empty()) return absl::OkStatus();
    absl::StatusOr<std::unique_ptr<MetricsPort>> port = MetricsPort::Open(
        metrics_address,
        {request_metrics_.source(),
         std::make_shared<ClusterMetrics>(coordinator_, [this] { return calls_.held_bytes(); })});
    if (!port.ok()) {
      return absl::UnavailableError(absl::StrCat("--metrics-listen: ", port.status().message()));
    }
    metrics_port_ = *std::move(port);
    spdlog::info("metrics address={}", metrics_port_->address());
    return absl::OkStatus();
  }

  const std::string& address() const { return address_; }

  // Takes nothing new and lets what there is end. False: `patience` passed first.
  bool Drain(milliseconds patience) {
    health_.Set(false);
    coordinator_.Drain();
    calls_.Drain(absl::UnavailableError("this server is draining: it takes no new requests"));
    return calls_.AwaitNone(patience);
  }

  // Whatever still lives is told to end before the transport is waited for. False: something does
  // not.
  bool Stop() {
    const absl::Status reason = absl::UnavailableError("this server shuts down");
    calls_.AbortAll(reason);
    const bool ended = calls_.AwaitNone(kFarewell);
    cluster_.Close(reason);
    health_.Detach();
    server_->Shutdown(std::chrono::system_clock::now() + kFarewell);
    return ended || calls_.AwaitNone(kFarewell);
  }

 private:
  AttendOptions WithMetrics(AttendOptions attend) {
    attend.on_record = [this](const RequestRecord& record, const absl::Status& outcome) {
      request_metrics_.Record(record, outcome);
    };
    attend.on_answer = [this](const char* method, const absl::Status& outcome) {
      request_metrics_.Count(method, outcome);
    };
    return attend;
  }

  Health health_;
  RequestMetrics request_metrics_;
  Coordinator coordinator_;
  AttendCalls calls_;
  AttentionService attention_;
  ClusterService cluster_;
  std::unique_ptr<grpc::Server> server_;
  std::string address_;
  std::unique_ptr<MetricsPort> metrics_port_;
};

int Fail(int code, const absl::Status& status) {
  std::fprintf(stderr, "ringserve-server: %s\n", std::string(status.message()).c_str());
  return code;
}

int Serve(const ServerOptions& options) {
  const sigset_t signals = HoldEndSignals();
  const auto credentials = MakeServerCredentials(options.tls);
  if (!credentials.ok()) return Fail(kExitBadOption, credentials.status());
  const auto to_workers = MakeChannelCredentials(options.tls);
  if (!to_workers.ok()) return Fail(kExitBadOption, to_workers.status());
  Server server(options, *to_workers);
  absl::Status status = server.ListenForProbes(options.health_listen);
  if (status.ok()) status = server.ListenForScrapes(options.metrics_listen);
  if (status.ok()) status = server.Listen(options.listen, *credentials);
  if (!status.ok()) return Fail(kExitFailure, status);
  std::printf("listening %s\n", server.address().c_str());
  std::fflush(stdout);
  spdlog::info("listening address={} version={}", server.address(), options.coordinator.version);

  int signal = 0;
  sigwait(&signals, &signal);
  spdlog::info("draining signal={} drain_ms={}", strsignal(signal), options.drain.count());
  std::thread(EndAtOnce, signals, options.drain + kLastGrace, kExitUnfinished).detach();
  const bool drained = server.Drain(options.drain);
  if (!drained) spdlog::warn("drain ended with requests unfinished");
  if (!server.Stop()) _exit(kExitUnfinished);
  spdlog::info("ended");
  return drained ? kExitOk : kExitUnfinished;
}

// Bytes that pass through are allocated and freed a few megabytes at a time. By default the heap
// gives each such wave back to the system: the page faults cost a fifth of all that forwarding
// takes.
void KeepFreedMemory() {
  mallopt(M_TRIM_THRESHOLD, 16 << 20);
  mallopt(M_ARENA_MAX, 2);
}

int Main(int argc, char** argv) {
  KeepFreedMemory();
  std::signal(SIGPIPE, SIG_IGN);  // whoever reads the log may go away
  ServerOptions options;
  const std::optional<int> exit = ParseOptions(argc, argv, options);
  if (exit.has_value()) return *exit;
  if (options.die_with_parent) {
    const absl::Status status = DieWithParent();
    if (!status.ok()) return Fail(kExitFailure, status);
  }
  StartLog(options.log);
  RaiseFileLimit();
  return Serve(options);
}

}  // namespace
}  // namespace ringserve

int main(int argc, char** argv) { return ringserve::Main(argc, argv); }
