// Listen addresses, credentials from real PEM files, and who is trusted over real TLS connections.
#include "proto/transport.h"

#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <memory>
#include <optional>
#include <string>

#include <gmock/gmock.h>
#include <grpcpp/generic/async_generic_service.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include "absl/strings/str_replace.h"
#include "absl/synchronization/notification.h"
#include "proto/status.h"
#include "tests/client/ringctl/scratch_folder.h"
#include "tests/support/wait.h"

namespace ringserve {
namespace {

using testing::AllOf;
using testing::HasSubstr;

// ca.crt, server.*, client.* of one authority; other/ca.crt, other/client.* of another.
class Transport : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder_ = new test::ScratchFolder;
    for (const std::string& arguments :
         {folder_->Path("") + " server client", folder_->Path("other") + " client"}) {
      const std::string command =
          std::string(RINGSERVE_TEST_DATA) + "/../deploy/make-certs " + arguments + " >/dev/null";
      ASSERT_EQ(std::system(command.c_str()), 0) << command;
    }
  }
  static void TearDownTestSuite() {
    delete folder_;
    folder_ = nullptr;
  }

  static std::string Path(const std::string& name) { return folder_->Path(name); }
  static std::string Write(const std::string& name, const std::string& content) {
    return folder_->Write(name, content);
  }
  static TlsFiles Identity(const std::string& name, const std::string& ca) {
    return {Path(name + ".crt"), Path(name + ".key"), ca.empty() ? "" : Path(ca)};
  }

  static inline test::ScratchFolder* folder_ = nullptr;
};

// A server that tells of each call whether its peer is trusted.
class Doorman : public grpc::CallbackGenericService {
 public:
  explicit Doorman(const TlsFiles& tls) : tls_(tls) {
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", *MakeServerCredentials(tls), &port_);
    ConfigureServer(builder);
    builder.RegisterCallbackGenericService(this);
    server_ = builder.BuildAndStart();
  }

  // The status that a caller with these files gets; OK: it is trusted, PERMISSION_DENIED: it is
  // not.
  absl::Status Call(const TlsFiles& client,
                    std::optional<grpc_compression_algorithm> algorithm = std::nullopt) {
    const auto channel = grpc::CreateCustomChannel(
        "127.0.0.1:" + std::to_string(port_), *MakeChannelCredentials(client),
        algorithm.has_value() ? grpc::ChannelArguments() : MakeChannelArguments());
    grpc::GenericStub stub(channel);
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + test::kPatience);
    if (algorithm.has_value()) context.set_compression_algorithm(*algorithm);
    const grpc::Slice zeros(std::string(10'000, '\0'));
    grpc::ByteBuffer request(&zeros, 1), response;
    grpc::Status status;
    absl::Notification done;
    stub.UnaryCall(&context, "/test/Call", {}, &request, &response, [&](grpc::Status ended) {
      status = std::move(ended);
      done.Notify();
    });
    done.WaitForNotification();
    return FromGrpc(status);
  }

 private:
  grpc::ServerGenericBidiReactor* CreateReactor(
      grpc::GenericCallbackServerContext* context) override {
    class Reactor : public grpc::ServerGenericBidiReactor {
     public:
      explicit Reactor(bool trusted) {
        if (trusted) {
          StartWriteAndFinish(&answer_, {}, grpc::Status::OK);
        } else {
          Finish(grpc::Status(grpc::StatusCode::PERMISSION_DENIED, "a stranger"));
        }
      }
      void OnDone() override { delete this; }

     private:
      const grpc::Slice empty_{""};
      const grpc::ByteBuffer answer_{&empty_, 1};
    };
    return new Reactor(PeerIsTrusted(*context, tls_));
  }

  const TlsFiles tls_;
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
};

TEST_F(Transport, AnyoneMayListenOnLoopback) {
  for (const char* address :
       {"127.0.0.1:0", "127.0.0.1:65535", "127.255.255.255:1", "localhost:50051", "[::1]:0",
        "unix:/run/ringserve.sock", "unix:relative", "unix-abstract:name"}) {
    EXPECT_TRUE(CheckListenAddress(address, {}, false).ok()) << address;
  }
}

TEST_F(Transport, BeyondLoopbackTakesTlsOrAWord) {
  for (const char* address :
       {"0.0.0.0:0", "[::]:80", "10.0.0.1:80", "128.0.0.1:1", "example:80", "localhost.example:1",
        "127.0.0.1.example:80", "[::ffff:127.0.0.1]:1", "[fe80::1%lo]:1", "127.1:80", "127:80",
        "0127.0.0.1:80", "127.0.0.256:80", "127.+0.0.1:80", "127. 0.0.1:80", "LOCALHOST:80"}) {
    const absl::Status status = CheckListenAddress(address, {}, false);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << address;
    EXPECT_THAT(std::string(status.message()),
                AllOf(HasSubstr(address), HasSubstr("beyond loopback"), HasSubstr("--insecure")));
    EXPECT_TRUE(CheckListenAddress(address, {}, true).ok()) << address;
    EXPECT_TRUE(CheckListenAddress(address, Identity("server", ""), false).ok()) << address;
  }
}

TEST_F(Transport, AnAddressIsHostAndPortOrAPath) {
  for (const char* address :
       {"", ":", ":80", "127.0.0.1", "127.0.0.1:", "127.0.0.1:x", "127.0.0.1:-1", "127.0.0.1:+1",
        "127.0.0.1: 1", "127.0.0.1:1 ", "127.0.0.1:65536", "127.0.0.1:99999999999", "::1:80",
        "[]:80", "[::1]", "[::1", "dns:///localhost:80", "ipv4:127.0.0.1:80"}) {
    for (const bool insecure : {false, true}) {
      const absl::Status status = CheckListenAddress(address, {}, insecure);
      EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << address;
      EXPECT_THAT(std::string(status.message()), HasSubstr("is neither HOST:PORT"));
    }
  }
  for (const char* address : {"unix:", "unix-abstract:"}) {
    EXPECT_THAT(CheckListenAddress(address, {}, true).ToString(), HasSubstr("has no path"));
  }
}

TEST_F(Transport, CredentialsTakeFilesThatBelongTogether) {
  EXPECT_TRUE(MakeServerCredentials({}).ok());
  EXPECT_TRUE(MakeServerCredentials(Identity("server", "")).ok());
  EXPECT_TRUE(MakeServerCredentials(Identity("server", "ca.crt")).ok());
  EXPECT_TRUE(MakeChannelCredentials({}).ok());
  EXPECT_TRUE(MakeChannelCredentials({.ca = Path("ca.crt")}).ok());
  EXPECT_TRUE(MakeChannelCredentials(Identity("client", "ca.crt")).ok());
}

TEST_F(Transport, CredentialsSayWhichFlagIsMissing) {
  const auto expect = [](const absl::Status& status, const char* says) {
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr(says));
  };
  TlsFiles tls = Identity("server", "ca.crt");
  tls.key.clear();
  expect(MakeServerCredentials(tls).status(), "--tls-cert is given without --tls-key");
  expect(MakeChannelCredentials(tls).status(), "--tls-cert is given without --tls-key");
  tls = Identity("server", "ca.crt");
  tls.cert.clear();
  expect(MakeServerCredentials(tls).status(), "--tls-key is given without --tls-cert");
  expect(MakeChannelCredentials(tls).status(), "--tls-key is given without --tls-cert");
  expect(MakeServerCredentials({.ca = Path("ca.crt")}).status(),
         "--tls-ca is given without --tls-cert and --tls-key");
  expect(MakeChannelCredentials(Identity("client", "")).status(),
         "--tls-cert is given without --tls-ca");
}

TEST_F(Transport, CredentialsNameTheFileThatIsWrong) {
  const std::string good = folder_->Read("server.crt");
  const std::string key = folder_->Read("server.key");
  const std::string cut = Write("cut.crt", good.substr(0, good.size() / 2));
  std::string broken = good;
  broken[good.size() / 2] = '!';
  const std::string first_line = good.substr(0, good.find('\n') + 1);
  struct Wrong {
    std::string path;
    const char* says;
  };
  const Wrong wrongs[] = {
      {Path("nowhere.crt"), "cannot be opened: No such file or directory"},
      {Path(""), "cannot be read"},
      {Write("empty.crt", ""), "holds no PEM CERTIFICATE"},
      {Write("text.crt", "certainly\n"), "holds no PEM CERTIFICATE"},
      {Path("server.key"), "holds no PEM CERTIFICATE"},
      {cut, "holds no PEM CERTIFICATE"},
      {Write("broken.crt", broken), "holds no PEM CERTIFICATE"},
      {Write("hollow.crt", first_line + "-----END CERTIFICATE-----\n"), "holds no PEM CERTIFICATE"},
      {Write("twice.crt", first_line + good), "holds no PEM CERTIFICATE"},
      {Write("large.crt", good + std::string(1 << 20, '\n')), "larger than 1048576 bytes"},
  };
  for (const Wrong& wrong : wrongs) {
    TlsFiles tls = Identity("server", "ca.crt");
    tls.cert = wrong.path;
    for (const absl::Status& status :
         {MakeServerCredentials(tls).status(), MakeChannelCredentials(tls).status()}) {
      EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
      EXPECT_THAT(std::string(status.message()),
                  AllOf(HasSubstr("--tls-cert '" + wrong.path + "': "), HasSubstr(wrong.says)));
    }
    tls = Identity("server", "ca.crt");
    tls.ca = wrong.path;
    EXPECT_THAT(MakeServerCredentials(tls).status().ToString(),
                HasSubstr("--tls-ca '" + wrong.path + "': "));
  }
  TlsFiles tls = Identity("server", "ca.crt");
  tls.key = Path("server.crt");
  EXPECT_THAT(MakeServerCredentials(tls).status().ToString(),
              AllOf(HasSubstr("--tls-key '"), HasSubstr("holds no PEM PRIVATE KEY")));
}

TEST_F(Transport, CredentialsTakeWhateverStandsBesideThePemBlocks) {
  TlsFiles tls = Identity("server", "ca.crt");
  tls.cert = Write("chain.crt", "Certificate:\n    Data: x\n" + folder_->Read("server.crt") +
                                    "\n# the authority\n" + folder_->Read("ca.crt"));
  tls.key =
      Write("windows.key", absl::StrReplaceAll(folder_->Read("server.key"), {{"\n", "\r\n"}}));
  EXPECT_TRUE(MakeServerCredentials(tls).ok()) << MakeServerCredentials(tls).status();
}

TEST_F(Transport, OverPlaintextEveryoneIsTrusted) { EXPECT_TRUE(Doorman({}).Call({}).ok()); }

TEST_F(Transport, UnderTlsOnlyAVerifiedCertificateIsTrusted) {
  Doorman lenient(Identity("server", ""));
  EXPECT_EQ(lenient.Call({.ca = Path("ca.crt")}).code(), absl::StatusCode::kPermissionDenied);
  // A certificate that the listener does not ask for proves nothing.
  EXPECT_EQ(lenient.Call(Identity("client", "ca.crt")).code(), absl::StatusCode::kPermissionDenied);

  Doorman strict(Identity("server", "ca.crt"));
  EXPECT_TRUE(strict.Call(Identity("client", "ca.crt")).ok());
  EXPECT_TRUE(strict.Call(Identity("server", "ca.crt")).ok());
}

TEST_F(Transport, AListenerWithAnAuthorityTurnsStrangersAway) {
  Doorman strict(Identity("server", "ca.crt"));
  TlsFiles forged = Identity("other/client", "ca.crt");
  for (const TlsFiles& client : {TlsFiles{.ca = Path("ca.crt")}, forged, TlsFiles{}}) {
    EXPECT_EQ(strict.Call(client).code(), absl::StatusCode::kUnavailable);
  }
}

TEST_F(Transport, AClientTurnsAStrangersServerAway) {
  Doorman server(Identity("server", ""));
  EXPECT_EQ(server.Call({.ca = Path("other/ca.crt")}).code(), absl::StatusCode::kUnavailable);
  Doorman plaintext{TlsFiles{}};
  EXPECT_EQ(plaintext.Call({.ca = Path("ca.crt")}).code(), absl::StatusCode::kUnavailable);
}

TEST_F(Transport, AServerRefusesWhatItWouldHaveToInflate) {
  Doorman server{TlsFiles{}};
  for (const grpc_compression_algorithm algorithm : {GRPC_COMPRESS_GZIP, GRPC_COMPRESS_DEFLATE}) {
    const absl::Status status = server.Call({}, algorithm);
    EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented) << status;
  }
  EXPECT_TRUE(server.Call({}, GRPC_COMPRESS_NONE).ok());
}

TEST_F(Transport, RaisesTheFileLimitToWhatIsAllowed) {
  rlimit before = {};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
  rlimit low = {std::min<rlim_t>(64, before.rlim_max), before.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &low), 0);
  EXPECT_EQ(RaiseFileLimit(), before.rlim_max);
  rlimit after = {};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &after), 0);
  EXPECT_EQ(after.rlim_cur, before.rlim_max);
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &before), 0);
}

}  // namespace
}  // namespace ringserve
