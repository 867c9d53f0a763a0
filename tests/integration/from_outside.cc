#include "tests/integration/from_outside.h"

#include <sys/wait.h>

#include <chrono>
#include <cstdio>

#include "health.grpc.pb.h"
#include "tests/integration/raw_call.h"
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
