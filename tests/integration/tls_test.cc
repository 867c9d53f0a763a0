// Every road over TLS, and who is turned away at the door.
#include <chrono>
#include <filesystem>
#include <memory>
#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "tests/integration/request.h"
#include "tests/support/cluster.h"

namespace ringserve::test {
namespace {

namespace fs = std::filesystem;
using std::chrono::milliseconds;
using ::testing::HasSubstr;

class TlsTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    char folder[] = "/tmp/ringserve-tls-XXXXXX";
    ASSERT_NE(mkdtemp(folder), nullptr);
    folder_ = new std::string(folder);
    MakeCertificates("good", "server worker client");
    MakeCertificates("other", "server worker client");
    cluster_ = new Cluster({.workers = 2,
                            .worker_flags = {"--memory-bytes", "256MiB"},
                            .tls = Files("good", "server"),
                            .client_tls = Files("good", "client")});
  }
  static void TearDownTestSuite() {
    delete cluster_;
    fs::remove_all(*folder_);
    delete folder_;
  }
  void TearDown() override {
    if (HasFailure()) ADD_FAILURE() << cluster_->Logs();
  }

  static void MakeCertificates(const std::string& authority, const std::string& names) {
    const std::string command = absl::StrCat(RINGSERVE_TEST_DATA, "/../deploy/make-certs ",
                                             *folder_, "/", authority, " ", names, " >/dev/null");
    ASSERT_EQ(std::system(command.c_str()), 0) << command;
  }

  // The files of `name`, trusting its own authority.
  static TlsFiles Files(const std::string& authority, const std::string& name) {
    const std::string prefix = absl::StrCat(*folder_, "/", authority, "/");
    return {.cert = prefix + name + ".crt", .key = prefix + name + ".key", .ca = prefix + "ca.crt"};
  }

  static std::unique_ptr<Client> ClientWith(const TlsFiles& tls) {
    return *Client::Connect({.server = cluster_->address(),
                             .tls_cert = tls.cert,
                             .tls_key = tls.key,
                             .tls_ca = tls.ca});
  }

  // A call that cannot be made: UNAVAILABLE, soon, and not tried again. The message.
  static std::string ExpectTurnedAway(Client& client) {
    const Request request(MakeHeader(MakeSpec(8, 8, 1, 8, 8), "", 0), 1);
    const auto begin = std::chrono::steady_clock::now();
    int retries = 0;
    const absl::Status status =
        request.AskOf(client, {.on_retry = [&](int, const absl::Status&) { ++retries; }}).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
    EXPECT_EQ(retries, 0);
    EXPECT_LT(std::chrono::steady_clock::now() - begin, milliseconds(6'000) * kSlowness);
    EXPECT_FALSE(client.GetCluster().ok());
    return std::string(status.message());
  }

  static Cluster* cluster_;
  static std::string* folder_;
};

Cluster* TlsTest::cluster_ = nullptr;
std::string* TlsTest::folder_ = nullptr;

TEST_F(TlsTest, AllRoadsAreServed) {
  for (const auto rotate :
       {v1::ROTATE_METHOD_ALL_TO_ALL, v1::ROTATE_METHOD_ALL_GATHER, v1::ROTATE_METHOD_PASS_Q}) {
    v1::AttendHeader header = MakeHeader(MakeSpec(3'000, 3'000, 4, 64, 32), "secret", 2);
    header.mutable_options()->set_rotate(rotate);
    const Request request(header, 1);
    const absl::StatusOr<Answer> answer = request.AskOf(cluster_->client());
    ASSERT_TRUE(answer.ok()) << answer.status();
    EXPECT_EQ(request.WhatIsWrong(*answer), "");
    EXPECT_EQ(WhatIsWrongWithStatistics(request.header(), answer->statistics), "");
    EXPECT_GT(answer->statistics.ranks(0).bytes_sent(), 0u);
  }
}

TEST_F(TlsTest, AWorkerIsReplacedUnderTls) {
  cluster_->worker(1).Kill();
  cluster_->RestartWorker(1);
  ASSERT_TRUE(cluster_->AwaitWorkers(2));
  const Request request(MakeHeader(MakeSpec(100, 100, 1, 8, 8), "", 2), 1);
  const absl::StatusOr<Answer> answer = request.AskOf(cluster_->client());
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_EQ(request.WhatIsWrong(*answer), "");
}

TEST_F(TlsTest, AClientThatTrustsAnotherAuthorityDoesNotTalkToTheServer) {
  TlsFiles tls = Files("good", "client");
  tls.ca = Files("other", "client").ca;
  const std::string message = ExpectTurnedAway(*ClientWith(tls));
  EXPECT_THAT(message, HasSubstr("erti"));  // certificate, CERTIFICATE
}

TEST_F(TlsTest, AClientOfAnotherAuthorityIsRefused) {
  TlsFiles tls = Files("other", "client");
  tls.ca = Files("good", "client").ca;
  ExpectTurnedAway(*ClientWith(tls));
}

TEST_F(TlsTest, AClientWithoutACertificateIsRefused) {
  ExpectTurnedAway(*ClientWith({.ca = Files("good", "client").ca}));
}

TEST_F(TlsTest, APlaintextClientGetsAClearErrorSoon) {
  const std::string message = ExpectTurnedAway(*ClientWith({}));
  EXPECT_THAT(message, HasSubstr(cluster_->address()));
}

TEST_F(TlsTest, ATlsClientOfAPlaintextServerGetsAClearErrorSoon) {
  Cluster plain({.workers = 0});
  const TlsFiles tls = Files("good", "client");
  const auto client = *Client::Connect(
      {.server = plain.address(), .tls_cert = tls.cert, .tls_key = tls.key, .tls_ca = tls.ca});
  ExpectTurnedAway(*client);
}

TEST_F(TlsTest, AWorkerOfAnotherAuthorityDoesNotJoin) {
  Spawner spawner;
  const TlsFiles tls = Files("other", "worker");
  const auto worker =
      spawner.Start(Binary("ringserve-worker"),
                    {"--die-with-parent", "--coordinator", cluster_->address(), "--threads", "1",
                     "--tls-cert", tls.cert, "--tls-key", tls.key, "--tls-ca", tls.ca});
  EXPECT_TRUE(worker->WaitForLog("not_joined").has_value());
  EXPECT_EQ(cluster_->client().GetCluster()->workers_size(), 2);
}

TEST_F(TlsTest, APlaintextWorkerDoesNotJoin) {
  Spawner spawner;
  const auto worker =
      spawner.Start(Binary("ringserve-worker"),
                    {"--die-with-parent", "--coordinator", cluster_->address(), "--threads", "1"});
  EXPECT_TRUE(worker->WaitForLog("not_joined").has_value());
  EXPECT_EQ(cluster_->client().GetCluster()->workers_size(), 2);
}

TEST_F(TlsTest, AFileThatIsMissingOrNoCertificateIsNamed) {
  const TlsFiles good = Files("good", "server");
  Spawner spawner;
  for (const char* binary : {"ringserve-server", "ringserve-worker"}) {
    for (const auto& [cert, word] :
         {std::pair<std::string, std::string>{*folder_ + "/missing.crt", "missing.crt"},
          {RINGSERVE_TEST_DATA "/CMakeLists.txt", "CMakeLists.txt"}}) {
      const auto process = spawner.Start(
          Binary(binary), {"--die-with-parent", "--listen", "127.0.0.1:0", "--tls-cert", cert,
                           "--tls-key", good.key, "--tls-ca", good.ca});
      const std::optional<int> exit = process->WaitForExit();
      ASSERT_TRUE(exit.has_value()) << binary << " goes on with a bad certificate";
      EXPECT_GT(*exit, 0);
      EXPECT_TRUE(WaitUntil([&] { return process->log().find(word) != std::string::npos; }))
          << binary << ": " << process->log();
    }
  }
}

}  // namespace
}  // namespace ringserve::test
