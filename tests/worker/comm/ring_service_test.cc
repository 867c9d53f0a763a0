// Ring.Pass as a stranger sees it: who is turned away, and what a broken promise brings.
#include "worker/comm/ring_service.h"

#include <stdlib.h>

#include <atomic>
#include <filesystem>
#include <thread>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "proto/protocol.h"
#include "proto/status.h"
#include "tests/support/wait.h"

namespace ringserve {
namespace {

using absl::StatusCode;
using std::chrono::milliseconds;
using test::kPatience;
using test::WaitUntil;
using ::testing::HasSubstr;
using Clock = Communicator::Clock;

// A worker's end, on a listener of its own.
struct Listener {
  Listener(const TlsFiles& listener, const TlsFiles& ring)
      : service(RingService::Make(ring).value()) {
    grpc::ServerBuilder builder;
    ConfigureServer(builder);
    int port = 0;
    builder.AddListeningPort("127.0.0.1:0", MakeServerCredentials(listener).value(), &port);
    builder.RegisterService(service.get());
    server = builder.BuildAndStart();
    address = absl::StrCat("127.0.0.1:", port);
  }
  ~Listener() { server->Shutdown(std::chrono::system_clock::now() + kPatience); }

  std::unique_ptr<RingService> service;
  std::unique_ptr<grpc::Server> server;
  std::string address;
};

// Member 0 of three. The others never hear of an epoch: the test speaks for them.
class RingServiceTest : public ::testing::Test {
 protected:
  void Serve(const TlsFiles& listener, const TlsFiles& ring) {
    others_ = std::make_unique<Listener>(listener, ring);
    self_ = std::make_unique<Listener>(listener, ring);
    address_ = self_->address;
    communicator_ = Build("e1");
  }
  void SetUp() override { Serve({}, {}); }

  std::shared_ptr<Communicator> Build(const std::string& id) {
    v1::Epoch epoch;
    epoch.set_id(id);
    epoch.add_members()->set_address(address_);
    epoch.add_members()->set_address(others_->address);
    epoch.add_members()->set_address(others_->address);
    return self_->service->Build(epoch);
  }

  std::unique_ptr<Listener> self_, others_;
  std::string address_;
  std::shared_ptr<Communicator> communicator_;
};

class Stranger {
 public:
  explicit Stranger(const std::string& address, const TlsFiles& tls = {})
      : stub_(v1::Ring::NewStub(grpc::CreateCustomChannel(
            address, MakeChannelCredentials(tls).value(), MakeChannelArguments()))) {
    context_.set_deadline(std::chrono::system_clock::now() + kPatience);
  }
  ~Stranger() {
    context_.TryCancel();
    if (writer_ != nullptr && !finished_) writer_->Finish();
  }

  Stranger& With(const char* key, const std::string& value) {
    context_.AddMetadata(key, value);
    return *this;
  }
  Stranger& As(const std::string& epoch, int from, int to) {
    return With(kRingEpochKey, epoch)
        .With(kRingFromKey, absl::StrCat(from))
        .With(kRingToKey, absl::StrCat(to));
  }
  void Call() { writer_ = stub_->Pass(&context_, &done_); }
  bool Write(uint64_t job, uint64_t offset, uint64_t size, const std::string& data) {
    v1::Frame frame;
    frame.set_job(job);
    frame.set_offset(offset);
    frame.set_size(size);
    frame.set_data(data);
    return writer_->Write(frame);
  }
  void Cancel() { context_.TryCancel(); }
  absl::Status Finish() {
    if (writer_ == nullptr) Call();
    finished_ = true;
    return FromGrpc(writer_->Finish(), context_);
  }

 private:
  const std::unique_ptr<v1::Ring::Stub> stub_;
  grpc::ClientContext context_;
  v1::PassDone done_;
  std::unique_ptr<grpc::ClientWriter<v1::Frame>> writer_;
  bool finished_ = false;
};

TEST_F(RingServiceTest, RefusesCallsThatDoNotSayWhoTheyAre) {
  EXPECT_EQ(Stranger(address_).Finish().code(), StatusCode::kInvalidArgument);
  const std::pair<const char*, const char*> wrong[] = {
      {"1", "x"}, {"one", "0"}, {"1", "1"}, {"0", "0"}, {"3", "0"}, {"-1", "0"}, {"1", "2"}};
  for (const auto& [from, to] : wrong) {
    Stranger stranger(address_);
    stranger.With(kRingEpochKey, "e1").With(kRingFromKey, from).With(kRingToKey, to);
    EXPECT_EQ(stranger.Finish().code(), StatusCode::kInvalidArgument) << from << " to " << to;
  }
}

TEST_F(RingServiceTest, AsksCallsOfAnUnknownEpochToComeAgain) {
  const absl::Status status = Stranger(address_).As("e2", 1, 0).Finish();
  EXPECT_EQ(status.code(), StatusCode::kUnavailable);
  EXPECT_TRUE(RetryAfter(status).has_value());
  const std::shared_ptr<Communicator> ended = Build("e3");
  ended->Abort(absl::UnavailableError("fenced"));
  const absl::Status late = Stranger(address_).As("e3", 1, 0).Finish();
  EXPECT_EQ(late.code(), StatusCode::kUnavailable);
  EXPECT_FALSE(RetryAfter(late).has_value()) << "an epoch that has ended never comes back";
}

TEST_F(RingServiceTest, RefusesASecondCallOfTheSameMember) {
  Stranger first(address_);
  first.As("e1", 1, 0).Call();
  ASSERT_TRUE(first.Write(1, 0, 3, "abc"));
  std::vector<std::byte> in(3);
  const auto ticket =
      communicator_->Post({.job = 1}, {}, std::vector{RecvOp{.peer = 1, .parts = {in}}});
  ASSERT_TRUE(communicator_->Then(*ticket, Clock::now() + kPatience).ok());
  EXPECT_EQ(Stranger(address_).As("e1", 1, 0).Finish().code(), StatusCode::kInvalidArgument);
  ASSERT_TRUE(first.Write(2, 0, 3, "def")) << "the first call is none the worse for it";
  const auto next =
      communicator_->Post({.job = 2}, {}, std::vector{RecvOp{.peer = 1, .parts = {in}}});
  EXPECT_TRUE(communicator_->Then(*next, Clock::now() + kPatience).ok());
}

TEST_F(RingServiceTest, EndsTheEpochOnAFrameThatContradictsTheReceive) {
  const std::function<void(Stranger&)> wrong[] = {
      [](Stranger& s) { s.Write(2, 0, 10, "0123456789"); },     // another job
      [](Stranger& s) { s.Write(1, 0, 11, "0123456789"); },     // another size
      [](Stranger& s) { s.Write(1, 5, 10, "56789"); },          // not from the beginning
      [](Stranger& s) { s.Write(1, 0, 10, "0123456789ABC"); },  // past its own end
      [](Stranger& s) { s.Write(1, 0, 10, ""); },               // nothing
      [](Stranger& s) { s.Write(1, 0, 10, "01234") && s.Write(1, 4, 10, "456789"); },
      [](Stranger& s) { s.Write(1, 0, 10, "01234") && s.Write(1, 6, 10, "6789"); }};
  int round = 0;
  for (const auto& err : wrong) {
    const std::string epoch = absl::StrCat("wrong", round++);
    const std::shared_ptr<Communicator> communicator = Build(epoch);
    std::vector<std::byte> in(10);
    const auto ticket =
        communicator->Post({.job = 1}, {}, std::vector{RecvOp{.peer = 1, .parts = {in}}});
    Stranger stranger(address_);
    stranger.As(epoch, 1, 0).Call();
    err(stranger);
    EXPECT_EQ(stranger.Finish().code(), StatusCode::kInvalidArgument) << epoch;
    const absl::Status status = communicator->Then(*ticket, Clock::now() + kPatience);
    EXPECT_EQ(status.code(), StatusCode::kInternal) << epoch << ": " << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("worker 1"));
  }
}

TEST_F(RingServiceTest, ReadsNoMoreThanOneMessageThatNobodyWaitsFor) {
  Stranger stranger(address_);
  stranger.As("e1", 1, 0).Call();
  std::atomic<int> written{0};
  constexpr int kFrames = 64;
  std::thread writer([&] {
    const std::string data(1 << 20, 'x');
    for (int i = 0; i < kFrames; ++i) {
      if (!stranger.Write(1, static_cast<uint64_t>(i) << 20, kFrames << 20, data)) return;
      ++written;
    }
  });
  ASSERT_TRUE(WaitUntil([&] { return written > 0; }));
  // One was read, one may lie in windows and buffers.
  EXPECT_FALSE(WaitUntil([&] { return written > 4; }, milliseconds(300)));
  std::vector<std::byte> in(kFrames << 20);
  const auto ticket =
      communicator_->Post({.job = 1}, {}, std::vector{RecvOp{.peer = 1, .parts = {in}}});
  EXPECT_TRUE(communicator_->Then(*ticket, Clock::now() + kPatience).ok());
  writer.join();
  EXPECT_EQ(written, kFrames);
}

// The server must come down while strangers hold calls open and nobody aborts anything.
TEST_F(RingServiceTest, LetsTheServerShutDownUnderOpenCalls) {
  Stranger one(address_), other(address_);
  one.As("e1", 1, 0).Call();
  other.As("e1", 2, 0).Call();
  ASSERT_TRUE(one.Write(1, 0, 3, "abc") && other.Write(1, 0, 3, "abc"));
  communicator_.reset();
  const auto begin = Clock::now();
  self_->server->Shutdown(std::chrono::system_clock::now() + kPatience);
  EXPECT_LT(Clock::now() - begin, kPatience / 2);
  EXPECT_EQ(one.Finish().code(), StatusCode::kUnavailable);
}

class RingServiceTlsTest : public RingServiceTest {
 protected:
  void SetUp() override {
    char folder[] = "/tmp/ringserve-ring-XXXXXX";
    ASSERT_NE(mkdtemp(folder), nullptr);
    folder_ = folder;
    const std::string command =
        absl::StrCat(RINGSERVE_TEST_DATA, "/../deploy/make-certs ", folder_, " worker >/dev/null");
    ASSERT_EQ(std::system(command.c_str()), 0) << command;
    tls_ = {
        .cert = folder_ + "/worker.crt", .key = folder_ + "/worker.key", .ca = folder_ + "/ca.crt"};
  }
  ~RingServiceTlsTest() override { std::filesystem::remove_all(folder_); }

  std::string folder_;
  TlsFiles tls_;
};

TEST_F(RingServiceTlsTest, TurnsAwayWhoHasNoCertificate) {
  Serve(tls_, tls_);
  EXPECT_EQ(Stranger(address_, {.ca = tls_.ca}).As("e1", 1, 0).Finish().code(),
            StatusCode::kUnavailable);
  EXPECT_EQ(Stranger(address_).As("e1", 1, 0).Finish().code(), StatusCode::kUnavailable);
  EXPECT_EQ(Stranger(address_, tls_).As("e1", 5, 0).Finish().code(), StatusCode::kInvalidArgument)
      << "who has one is heard";
}

// A listener that lets anybody in: the service does not.
TEST_F(RingServiceTlsTest, DemandsACertificateOfItsOwn) {
  Serve({.cert = tls_.cert, .key = tls_.key}, tls_);
  EXPECT_EQ(Stranger(address_, {.ca = tls_.ca}).As("e1", 1, 0).Finish().code(),
            StatusCode::kUnauthenticated);
}

}  // namespace
}  // namespace ringserve
