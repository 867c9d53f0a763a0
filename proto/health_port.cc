#include "proto/health_port.h"

#include <chrono>
#include <vector>

#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/impl/server_builder_option.h>
#include <grpcpp/impl/server_builder_plugin.h>

#include "absl/strings/str_cat.h"
#include "proto/transport.h"
#include "proto/unix_socket.h"

namespace ringserve {
namespace {

// Reflection is a plugin of every server in a process.
class WithoutPlugins : public grpc::ServerBuilderOption {
 public:
  void UpdateArguments(grpc::ChannelArguments*) override {}
  void UpdatePlugins(std::vector<std::unique_ptr<grpc::ServerBuilderPlugin>>* plugins) override {
    plugins->clear();
  }
};

}  // namespace

absl::StatusOr<std::unique_ptr<HealthPort>> HealthPort::Open(const std::string& listen) {
  absl::Status status = CheckListenAddress(listen, /*tls=*/{}, /*insecure=*/true);
  if (!status.ok()) return status;
  status = CheckNobodyListens(listen);
  if (!status.ok()) return absl::UnavailableError(status.message());
  grpc::EnableDefaultHealthCheckService(true);
  grpc::ServerBuilder builder;
  ConfigureServer(builder);
  int port = 0;
  builder.AddListeningPort(listen, grpc::InsecureServerCredentials(), &port);
  builder.SetOption(std::make_unique<WithoutPlugins>());
  std::unique_ptr<HealthPort> health(new HealthPort);
  builder.RegisterCallbackGenericService(&health->nothing_else_);
  health->server_ = builder.BuildAndStart();
  if (health->server_ == nullptr || port == 0) {
    return absl::UnavailableError(absl::StrCat("cannot listen on ", listen));
  }
  health->address_ = BoundAddress(listen, port);
  health->SetServing(false);
  health->server_->GetHealthCheckService()->SetServingStatus("liveness", true);
  return health;
}

HealthPort::~HealthPort() {
  if (server_ != nullptr) server_->Shutdown(std::chrono::system_clock::now());
}

void HealthPort::SetServing(bool serving) {
  server_->GetHealthCheckService()->SetServingStatus("", serving);
}

}  // namespace ringserve
