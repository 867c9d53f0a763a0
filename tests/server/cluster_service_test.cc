#include "server/cluster_service.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "tests/server/fake_worker.h"
#include "tests/support/wait.h"
#include "tests/worker/comm/fake_nccl.h"
#include "worker/comm/nccl_exchange.h"
#include "worker/join_client.h"
#include "worker/solo_communicator.h"

namespace ringserve {
namespace {

using std::chrono::milliseconds;
using test::FakeWorker;
using test::MakeHello;
using test::WaitUntil;
using ::testing::HasSubstr;

class ClusterServiceTest : public ::testing::Test {
 protected:
  void Serve(CoordinatorOptions options = {}, ClusterServiceOptions service = {}) {
    const auto credentials = MakeServerCredentials(service.tls);
    ASSERT_TRUE(credentials.ok()) << credentials.status();
    coordinator_ = std::make_unique<Coordinator>(std::move(options));
    service_ = std::make_unique<ClusterService>(*coordinator_, std::move(service));
    int port = 0;
    grpc::ServerBuilder builder;
    ConfigureServer(builder);
    builder.AddListeningPort("127.0.0.1:0", *credentials, &port);
    builder.RegisterService(service_.get());
    server_ = builder.BuildAndStart();
    address_ = "127.0.0.1:" + std::to_string(port);
  }

  void TearDown() override {
    if (service_ != nullptr) service_->Close(absl::UnavailableError("the test is over"));
    coordinator_.reset();
    if (server_ != nullptr) {
      server_->Shutdown(std::chrono::system_clock::now() + std::chrono::seconds(5));
    }
  }

  size_t Workers() { return coordinator_->Describe().workers_size(); }

  std::unique_ptr<Coordinator> coordinator_;
  std::unique_ptr<ClusterService> service_;
  std::unique_ptr<grpc::Server> server_;
  std::string address_;
};

// A worker without device and listener: the real client of Join and what it acts upon.
class JoiningWorker {
 public:
  JoiningWorker(const std::string& coordinator, const std::string& address,
                Seats::Build build = BuildNothing)
      : seats_(std::move(build)),
        client_({.coordinator = coordinator,
                 .credentials = grpc::InsecureChannelCredentials(),
                 .hello = MakeHello(address),
                 .slowest_retry = milliseconds(200)},
                seats_,
                {.progress = [] { return v1::Heartbeat(); },
                 .on_joined = [this](bool joined) { joins_ += joined; },
                 .drop_all = [](const absl::Status&) {},
                 .drop_epoch = [](const std::string&, const absl::Status&) {}}) {}

  Seats& seats() { return seats_; }
  JoinClient& client() { return client_; }
  int joins() const { return joins_; }

 private:
  std::atomic<int> joins_{0};
  static absl::StatusOr<std::shared_ptr<Communicator>> BuildNothing(const v1::Epoch&,
                                                                    const EpochLine& line) {
    line.built(absl::OkStatus());
    return std::make_shared<SoloCommunicator>();
  }

  Seats seats_;
  JoinClient client_;
};

TEST_F(ClusterServiceTest, RealWorkersFormAnEpochAndLeaveInGoodOrder) {
  Serve();
  JoiningWorker a(address_, "127.0.0.1:1001");
  ASSERT_TRUE(WaitUntil([&] { return coordinator_->group().workers == 1; }));
  auto b = std::make_unique<JoiningWorker>(address_, "127.0.0.1:1002");
  ASSERT_TRUE(WaitUntil([&] { return coordinator_->group().workers == 2; }));
  ASSERT_TRUE(WaitUntil([&] { return !coordinator_->Describe().epoch().empty(); }));
  const std::string epoch = coordinator_->Describe().epoch();
  ASSERT_TRUE(a.seats().Find(epoch).ok());
  EXPECT_EQ(a.seats().Find(epoch)->members, 2);
  EXPECT_EQ(b->seats().Find(epoch)->index, 1);

  b->client().Leave();
  EXPECT_TRUE(b->client().WaitUntilLeft(test::kPatience));
  EXPECT_TRUE(b->client().farewell().ok()) << b->client().farewell();
  ASSERT_TRUE(
      WaitUntil([&] { return Workers() == 1 && !coordinator_->Describe().epoch().empty(); }));
  EXPECT_NE(coordinator_->Describe().epoch(), epoch);
  EXPECT_TRUE(WaitUntil([&] { return !a.seats().Find(epoch).ok(); })) << "the old epoch lives on";
}

// The unique id goes from the first member by the coordinator to all.
TEST_F(ClusterServiceTest, WorkersOnGpusMeetByWayOfTheCoordinator) {
  Serve();
  test::FakeNccl fabric(1);
  std::vector<std::unique_ptr<NcclExchange>> exchanges;
  std::vector<std::unique_ptr<JoiningWorker>> workers;
  for (int i = 0; i < 4; ++i) {
    exchanges.push_back(std::make_unique<NcclExchange>(
        fabric.MakeLibrary(),
        NcclOptions{.on_stuck = [](const std::string& what) { ADD_FAILURE() << what; }}));
    workers.push_back(std::make_unique<JoiningWorker>(
        address_, absl::StrCat("127.0.0.1:", 1001 + i),
        [exchange = exchanges[i].get()](const v1::Epoch& epoch, const EpochLine& line) {
          return exchange->Build(epoch, line);
        }));
  }
  const auto in_one_epoch = [&](size_t members) {
    return WaitUntil([&] {
      const std::string epoch = coordinator_->Describe().epoch();
      if (epoch.empty()) return false;
      return std::all_of(workers.begin(), workers.end(), [&](const auto& worker) {
        const absl::StatusOr<Seat> seat = worker->seats().Find(epoch);
        return seat.ok() && seat->members == static_cast<int>(members);
      });
    });
  };
  ASSERT_TRUE(in_one_epoch(4));
  workers.erase(workers.begin());  // the first member: another one makes the next unique id
  ASSERT_TRUE(in_one_epoch(3));
  EXPECT_EQ(fabric.most_building_at_once(), 1);
  workers.clear();
}

TEST_F(ClusterServiceTest, AWorkerThatFallsSilentIsToldSoAndComesBackAsAnother) {
  CoordinatorOptions options;
  options.lost_after = milliseconds(600) * test::kSlowness;
  Serve(options);
  FakeWorker silent(address_);
  ASSERT_TRUE(silent.Hello(MakeHello("127.0.0.1:1001")));
  ASSERT_TRUE(silent.Await([](const auto& seen) { return seen.messages.size() >= 2; }));
  const absl::Status status = silent.AwaitEnd();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("silent"));
  ASSERT_TRUE(WaitUntil([&] { return Workers() == 0; }));
  FakeWorker again(address_);
  ASSERT_TRUE(again.Hello(MakeHello("127.0.0.1:1001")));
  EXPECT_EQ(again.AwaitEpoch(0).members(0).worker_id(), "w2");
}

TEST_F(ClusterServiceTest, WelcomesSendsTheEpochAndAnswersHeartbeats) {
  CoordinatorOptions options;
  options.heartbeat_interval = milliseconds(123);
  options.lost_after = std::chrono::hours(1);
  Serve(options);
  FakeWorker worker(address_);
  ASSERT_TRUE(worker.Hello(MakeHello("127.0.0.1:1001")));
  const v1::Epoch epoch = worker.AwaitEpoch(0);
  worker.Await([](const auto& seen) {
    EXPECT_EQ(seen.messages[0].welcome().worker_id(), "w1");
    EXPECT_EQ(seen.messages[0].welcome().heartbeat_interval_ms(), 123);
    EXPECT_EQ(seen.messages[0].welcome().lost_after_ms(), 3'600'000);
    return true;
  });
  ASSERT_EQ(epoch.members_size(), 1);
  EXPECT_EQ(epoch.members(0).address(), "127.0.0.1:1001");
  v1::WorkerMessage message;
  message.set_epoch_ready(epoch.id());
  ASSERT_TRUE(worker.Send(message));
  ASSERT_TRUE(WaitUntil([&] { return coordinator_->Describe().epoch() == epoch.id(); }));
  message.Clear();
  message.mutable_heartbeat();
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(worker.Send(message));
  EXPECT_TRUE(worker.Await([](const auto& seen) { return seen.alive == 3; }));
}

TEST_F(ClusterServiceTest, RefusesWhatIsNoHello) {
  Serve();
  FakeWorker rude(address_);
  v1::WorkerMessage message;
  message.mutable_heartbeat();
  ASSERT_TRUE(rude.Send(message));
  const absl::Status status = rude.AwaitEnd();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("hello"));
  FakeWorker mute(address_);
  mute.HalfClose();
  EXPECT_EQ(mute.AwaitEnd().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Workers(), 0u);
}

TEST_F(ClusterServiceTest, RefusesAWrongHelloWithItsReason) {
  Serve();
  v1::Hello hello = MakeHello("127.0.0.1:1001");
  hello.set_protocol_version(99);
  FakeWorker other(address_);
  ASSERT_TRUE(other.Hello(hello));
  const absl::Status version = other.AwaitEnd();
  EXPECT_EQ(version.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(version.message()), HasSubstr("99"));
  hello = MakeHello("");
  FakeWorker nowhere(address_);
  ASSERT_TRUE(nowhere.Hello(hello));
  const absl::Status address = nowhere.AwaitEnd();
  EXPECT_EQ(address.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(address.message()), HasSubstr("hello.address"));
}

TEST_F(ClusterServiceTest, WaitsForHelloSoLongAndNoLonger) {
  Serve({}, {.hello_deadline = milliseconds(100)});
  FakeWorker mute(address_);
  const absl::Status status = mute.AwaitEnd();
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(std::string(status.message()), HasSubstr("100 ms"));
}

TEST_F(ClusterServiceTest, AMemberOutlivesTheDeadlineOfItsHello) {
  CoordinatorOptions options;
  options.lost_after = std::chrono::hours(1);
  Serve(options, {.hello_deadline = milliseconds(200) * test::kSlowness});
  FakeWorker worker(address_), mute(address_);
  ASSERT_TRUE(worker.Hello(MakeHello("127.0.0.1:1001")));
  EXPECT_EQ(mute.AwaitEnd().code(), absl::StatusCode::kDeadlineExceeded) << "began later";
  EXPECT_EQ(Workers(), 1u);
}

TEST_F(ClusterServiceTest, AWorkerWhoseCallEndsIsLost) {
  CoordinatorOptions options;
  options.lost_after = std::chrono::hours(1);
  Serve(options);
  FakeWorker broken(address_), closed(address_), stays(address_);
  ASSERT_TRUE(broken.Hello(MakeHello("127.0.0.1:1001")));
  ASSERT_TRUE(closed.Hello(MakeHello("127.0.0.1:1002")));
  ASSERT_TRUE(stays.Hello(MakeHello("127.0.0.1:1003")));
  ASSERT_TRUE(WaitUntil([&] { return Workers() == 3; }));
  broken.Break();
  EXPECT_TRUE(WaitUntil([&] { return Workers() == 2; }));
  closed.HalfClose();
  EXPECT_TRUE(WaitUntil([&] { return Workers() == 1; }));
  EXPECT_TRUE(closed.AwaitEnd().ok());
}

TEST_F(ClusterServiceTest, CloseEndsEveryCallAndRefusesThoseThatCome) {
  Serve();
  FakeWorker worker(address_), mute(address_);
  ASSERT_TRUE(worker.Hello(MakeHello("127.0.0.1:1001")));
  ASSERT_TRUE(worker.Await([](const auto& seen) { return seen.messages.size() >= 2; }));
  service_->Close(absl::UnavailableError("good night"));
  coordinator_.reset();
  EXPECT_THAT(worker.AwaitEnd().ToString(), HasSubstr("good night"));
  EXPECT_THAT(mute.AwaitEnd().ToString(), HasSubstr("good night"));
  FakeWorker late(address_);
  EXPECT_THAT(late.AwaitEnd().ToString(), HasSubstr("good night"));
}

// A flood of heartbeats whose answers nobody reads does not fill this process's memory.
TEST_F(ClusterServiceTest, EndsTheCallOfAWorkerThatDoesNotRead) {
  CoordinatorOptions options;
  options.lost_after = std::chrono::hours(1);
  Serve(options);
  const auto stub = v1::Cluster::NewStub(grpc::CreateCustomChannel(
      address_, grpc::InsecureChannelCredentials(), MakeChannelArguments()));
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + test::kPatience);
  const auto stream = stub->Join(&context);
  v1::WorkerMessage message;
  *message.mutable_hello() = MakeHello("127.0.0.1:1001");
  ASSERT_TRUE(stream->Write(message));
  message.Clear();
  message.mutable_heartbeat();
  while (stream->Write(message)) {
  }
  EXPECT_TRUE(WaitUntil([&] { return Workers() == 0; }));
  context.TryCancel();
  EXPECT_FALSE(stream->Finish().ok());
}

TEST_F(ClusterServiceTest, UnderTlsItDemandsAClientCertificate) {
  const std::string folder = ::testing::TempDir() + "join_tls." + std::to_string(getpid());
  const std::string command = std::string(RINGSERVE_TEST_DATA) + "/../deploy/make-certs " + folder +
                              " server worker > /dev/null";
  ASSERT_EQ(std::system(command.c_str()), 0) << command;
  const auto certificates = [&](const std::string& name, bool with_ca) {
    return TlsFiles{.cert = folder + "/" + name + ".crt",
                    .key = folder + "/" + name + ".key",
                    .ca = with_ca ? folder + "/ca.crt" : ""};
  };
  const auto worker = MakeChannelCredentials(certificates("worker", true));
  ASSERT_TRUE(worker.ok()) << worker.status();

  Serve({}, {.tls = certificates("server", false)});  // serves anybody, but not this
  FakeWorker unverified(address_, *worker);
  EXPECT_EQ(unverified.AwaitEnd().code(), absl::StatusCode::kUnauthenticated);
  TearDown();

  Serve({}, {.tls = certificates("server", true)});
  FakeWorker verified(address_, *worker);
  ASSERT_TRUE(verified.Hello(MakeHello("127.0.0.1:1001")));
  EXPECT_FALSE(verified.AwaitEpoch(0).id().empty());
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace ringserve
