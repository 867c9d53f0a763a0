#include "tests/worker/comm/grpc_transport.h"

#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <filesystem>

#include <grpc/grpc.h>
#include <grpcpp/grpcpp.h>

#include "absl/strings/match.h"
#include "proto/transport.h"
#include "worker/comm/ring_service.h"

namespace ringserve::test {
namespace {

class GrpcTransport : public Transport {
 public:
  GrpcTransport(std::string listen, const TlsFiles& tls) {
    // gRPC's own end may wait seconds for a poller of a connection that is no more.
    static const int kept = (grpc_init(), 0);
    static_cast<void>(kept);
    service_ = RingService::Make(tls).value();
    static std::atomic<int> count{0};
    if (absl::StartsWith(listen, "unix:")) {
      absl::StrAppend(&listen, "/ringserve-test-", getpid(), "-", count++);
      path_ = listen.substr(5);
    }
    grpc::ServerBuilder builder;
    ConfigureServer(builder);
    int port = 0;
    builder.AddListeningPort(listen, MakeServerCredentials(tls).value(), &port);
    builder.RegisterService(service_.get());
    server_ = builder.BuildAndStart();
    if (server_ == nullptr) throw std::runtime_error("cannot listen on " + listen);
    address_ = path_.empty() ? absl::StrCat("127.0.0.1:", port) : listen;
  }

  ~GrpcTransport() override {
    server_->Shutdown(std::chrono::system_clock::now() + kPatience);
    server_.reset();
    if (!path_.empty()) unlink(path_.c_str());
  }

  std::string address() const override { return address_; }

  std::shared_ptr<Communicator> Build(const std::string& id,
                                      const std::vector<std::string>& addresses,
                                      int index) override {
    v1::Epoch epoch;
    epoch.set_id(id);
    epoch.set_index(index);
    for (const std::string& address : addresses) epoch.add_members()->set_address(address);
    return service_->Build(epoch);
  }

 private:
  std::string address_, path_;
  std::unique_ptr<RingService> service_;
  std::unique_ptr<grpc::Server> server_;
};

// A folder of certificates that goes with the process that made it.
class Certificates {
 public:
  Certificates() {
    char folder[] = "/tmp/ringserve-comm-XXXXXX";
    if (mkdtemp(folder) == nullptr) throw std::runtime_error("mkdtemp");
    folder_ = folder;
    const std::string command =
        absl::StrCat(RINGSERVE_TEST_DATA, "/../deploy/make-certs ", folder_, " worker >/dev/null");
    if (std::system(command.c_str()) != 0) throw std::runtime_error(command);
  }
  ~Certificates() { std::filesystem::remove_all(folder_); }

  TlsFiles files() const {
    return {
        .cert = folder_ + "/worker.crt", .key = folder_ + "/worker.key", .ca = folder_ + "/ca.crt"};
  }

 private:
  std::string folder_;
};

const Certificates& SharedCertificates() {
  static const Certificates certificates;
  return certificates;
}

}  // namespace

Implementation GrpcOver(const std::string& name, const std::string& listen) {
  return {.name = name,
          .make = [=] { return std::make_unique<GrpcTransport>(listen, TlsFiles()); }};
}

Implementation GrpcOverTls() {
  return {.name = "Tls",
          .make =
              [] {
                return std::make_unique<GrpcTransport>("127.0.0.1:0", SharedCertificates().files());
              },
          .prepare = [] { SharedCertificates(); }};
}

}  // namespace ringserve::test
