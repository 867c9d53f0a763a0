#include "tests/integration/from_outside.h"

#include <sys/wait.h>

#include <chrono>
#include <cstdio>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include "tests/integration/raw_call.h"
#include "tests/integration/tcp_connection.h"
#include "tests/support/wait.h"

namespace ringserve::test {

std::string HealthOf(const std::string& address, const std::string& service) {
  using grpc::health::v1::HealthCheckResponse;
  const auto stub = grpc::health::v1::Health::NewStub(NewChannel(address));
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + kPatience);
  grpc::health::v1::HealthCheckRequest request;
  request.set_service(service);
  HealthCheckResponse response;
  const grpc::Status status = stub->Check(&context, request, &response);
  return status.ok() ? HealthCheckResponse::ServingStatus_Name(response.status())
                     : status.error_message();
}

std::string Get(const std::string& address, const std::string& path) {
  TcpConnection connection(address);
  if (!connection.connected()) return "";
  connection.Send(absl::StrCat("GET ", path, " HTTP/1.0\r\nHost: test\r\n\r\n"));
  return connection.ReadAll();
}

std::map<std::string, double> Scrape(const std::string& address) {
  std::map<std::string, double> series;
  for (const absl::string_view line : absl::StrSplit(Get(address, "/metrics"), '\n')) {
    const size_t space = line.rfind(' ');
    double value = 0;
    if (!absl::StartsWith(line, "ringserve_") || space == line.npos) continue;
    if (absl::SimpleAtod(line.substr(space + 1), &value)) {
      series[std::string(line.substr(0, space))] = value;
    }
  }
  return series;
}

Output OutputOf(const std::string& command) {
  Output output;
  FILE* pipe = popen((command + " 2>&1").c_str(), "r");
  char buffer[4'096];
  for (size_t count; (count = fread(buffer, 1, sizeof(buffer), pipe)) > 0;) {
    output.text.append(buffer, count);
  }
  output.exit = WEXITSTATUS(pclose(pipe));
  return output;
}

}  // namespace ringserve::test
