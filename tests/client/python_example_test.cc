// The Python example against a whole service: any gRPC client can speak to it.
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/cluster.h"

namespace ringserve::test {
namespace {

using ::testing::HasSubstr;

constexpr char kSource[] = RINGSERVE_TEST_DATA "/..";

class PythonExample : public ::testing::Test {
 protected:
  PythonExample() {
    std::string folder = ::testing::TempDir() + "python_example_XXXXXX";
    folder_ = mkdtemp(folder.data());
  }
  ~PythonExample() override { std::filesystem::remove_all(folder_); }

  void GenerateStubs() {
    std::vector<std::string> arguments = {"-I" + std::string(kSource) + "/proto",
                                          "--python_out=" + folder_, "--grpc_out=" + folder_,
                                          "--plugin=protoc-gen-grpc=" RINGSERVE_PYTHON_PLUGIN};
    for (const char* name : {"tensor", "attention"}) {
      arguments.push_back(std::string(kSource) + "/proto/ringserve/v1/" + name + ".proto");
    }
    auto protoc = spawner_.Start(RINGSERVE_PROTOC, arguments);
    ASSERT_EQ(protoc->WaitForExit(), 0) << protoc->log();
  }

  std::unique_ptr<Process> Attend(std::vector<std::string> flags) {
    flags.insert(flags.begin(), std::string(kSource) + "/client/examples/attend.py");
    auto example = spawner_.Start(RINGSERVE_PYTHON, flags, {{"PYTHONPATH", folder_}});
    example->WaitForExit();
    return example;
  }

  // A certificate authority of its own, and one certificate for each name.
  TlsFiles MakeCertificates(const std::string& authority) {
    const std::string folder = folder_ + "/" + authority;
    auto make = spawner_.Start(std::string(kSource) + "/deploy/make-certs", {folder, "node"});
    EXPECT_EQ(make->WaitForExit(), 0) << make->log();
    return {.cert = folder + "/node.crt", .key = folder + "/node.key", .ca = folder + "/ca.crt"};
  }

  std::string folder_;
  Spawner spawner_;
};

TEST_F(PythonExample, GetsTheRightAnswer) {
  GenerateStubs();
  Cluster cluster;
  for (const char* tokens : {"1", "7", "1500"}) {
    auto example = Attend({"--server", cluster.address(), "--tokens", tokens});
    EXPECT_EQ(example->WaitForExit(), 0) << example->log() << example->output() << cluster.Logs();
    EXPECT_THAT(example->output(), HasSubstr("largest error"));
  }
}

TEST_F(PythonExample, GetsItOverTlsAndIsRefusedWithoutTheRightCertificates) {
  GenerateStubs();
  const TlsFiles tls = MakeCertificates("ours");
  const TlsFiles other = MakeCertificates("other");
  Cluster cluster({.tls = tls, .client_tls = tls});
  auto example = Attend({"--server", cluster.address(), "--tls-ca", tls.ca, "--tls-cert", tls.cert,
                         "--tls-key", tls.key});
  EXPECT_EQ(example->WaitForExit(), 0) << example->log() << example->output() << cluster.Logs();
  for (const std::vector<std::string>& flags :
       {std::vector<std::string>{},
        {"--tls-ca", tls.ca},
        {"--tls-ca", other.ca, "--tls-cert", tls.cert, "--tls-key", tls.key},
        {"--tls-ca", tls.ca, "--tls-cert", other.cert, "--tls-key", other.key}}) {
    std::vector<std::string> all = {"--server", cluster.address()};
    all.insert(all.end(), flags.begin(), flags.end());
    auto refused = Attend(all);
    EXPECT_EQ(refused->WaitForExit(), 1);
    EXPECT_THAT(refused->log(), HasSubstr("StatusCode.UNAVAILABLE"));
  }
}

}  // namespace
}  // namespace ringserve::test
