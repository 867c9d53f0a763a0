#include "worker/join_client.h"

#include <atomic>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "proto/protocol.h"
#include "tests/worker/fake_coordinator.h"
#include "worker/solo_communicator.h"

namespace ringserve {
namespace {

using std::chrono::milliseconds;
using test::FakeCoordinator;
using test::Member;
using test::WaitUntil;

// A communicator that only remembers how it ended.
class Recorded : public SoloCommunicator {
 public:
  explicit Recorded(std::shared_ptr<absl::Status> end) : end_(std::move(end)) {}
  void Abort(absl::Status reason) override { *end_ = std::move(reason); }
  void Meet(const std::string& token) override { *end_ = absl::UnknownError("met by " + token); }

 private:
  const std::shared_ptr<absl::Status> end_;
};

// A worker without device and listener: the client and what it acts upon.
class Joining : public ::testing::Test {
 protected:
  void Join(const std::string& coordinator, milliseconds drain = test::kPatience) {
    v1::Hello hello;
    hello.set_protocol_version(kProtocolVersion);
    hello.set_address("127.0.0.1:1");
    client_ = std::make_unique<JoinClient>(
        JoinOptions{.coordinator = coordinator,
                    .credentials = grpc::InsecureChannelCredentials(),
                    .hello = hello,
                    .drain = drain,
                    .welcome_deadline = milliseconds(300),
                    .slowest_retry = milliseconds(100)},
        seats_,
        JoinClient::Hooks{
            .progress =
                [] {
                  v1::Heartbeat heartbeat;
                  heartbeat.set_job(17);
                  return heartbeat;
                },
            .on_joined = [this](bool joined) { Remember(joined ? "joined" : "not joined"); },
            .drop_all = [this](const absl::Status&) { Remember("drop all"); },
            .drop_epoch = [this](const std::string& epoch,
                                 const absl::Status&) { Remember("drop " + epoch); },
            .recall =
                [this](uint64_t job, const absl::Status&) {
                  Remember("recall " + std::to_string(job));
                  return holds_.load();
                }});
  }

  // A member of `coordinator`, its first one, and welcome.
  Member& JoinAsFirst(FakeCoordinator& coordinator) {
    Join(coordinator.address());
    EXPECT_TRUE(coordinator.AwaitJoins(1));
    Member& member = coordinator.member(0);
    member.Welcome("w1");
    return member;
  }

  void Remember(const std::string& event) {
    absl::MutexLock lock(&mu_);
    events_.push_back(event);
  }

  EpochLine Line(const std::string& epoch) {
    absl::MutexLock lock(&mu_);
    return lines_.at(epoch);
  }

  std::vector<std::string> events() {
    absl::MutexLock lock(&mu_);
    return events_;
  }

  absl::Mutex mu_;
  std::vector<std::string> events_ ABSL_GUARDED_BY(mu_);
  std::shared_ptr<absl::Status> communicator_end_ = std::make_shared<absl::Status>();
  bool build_fails_ = false;
  bool build_slowly_ = false;  // lines_ are the test's to speak on
  std::map<std::string, EpochLine> lines_ ABSL_GUARDED_BY(mu_);
  std::atomic<bool> holds_{false};
  Seats seats_{[this](const v1::Epoch& epoch,
                      const EpochLine& line) -> absl::StatusOr<std::shared_ptr<Communicator>> {
    if (build_fails_) return absl::InvalidArgumentError("no such device");
    if (build_slowly_) {
      absl::MutexLock lock(&mu_);
      lines_[epoch.id()] = line;
    } else {
      line.built(absl::OkStatus());
    }
    return std::make_shared<Recorded>(communicator_end_);
  }};
  std::unique_ptr<JoinClient> client_;
};

bool Says(const Member::Seen& seen, const std::function<bool(const v1::WorkerMessage&)>& what) {
  for (const v1::WorkerMessage& message : seen.messages) {
    if (what(message)) return true;
  }
  return false;
}

TEST_F(Joining, SaysHelloThenHeartbeatsOnceWelcome) {
  FakeCoordinator coordinator;
  Join(coordinator.address());
  ASSERT_TRUE(coordinator.AwaitJoins(1));
  Member& member = coordinator.member(0);
  EXPECT_EQ(member.hello().address(), "127.0.0.1:1");
  member.Welcome("w1");
  ASSERT_TRUE(member.Await([](const Member::Seen& seen) { return seen.heartbeats >= 3; }));
  EXPECT_TRUE(member.Await([](const Member::Seen& seen) { return seen.heartbeat.job() == 17; }));
  EXPECT_EQ(seats_.worker_id(), "w1");
}

TEST_F(Joining, BuildsAnEpochAndEndsItWhenFenced) {
  FakeCoordinator coordinator;
  Member& member = JoinAsFirst(coordinator);
  member.SendEpoch("e1", {"a", "b"}, 1);
  ASSERT_TRUE(member.AwaitEpochReady("e1"));
  const absl::StatusOr<Seat> seat = seats_.Find("e1");
  ASSERT_TRUE(seat.ok());
  EXPECT_EQ(seat->index, 1);
  EXPECT_EQ(seat->members, 2);
  member.Fence("e1");
  ASSERT_TRUE(WaitUntil([&] { return events() == std::vector<std::string>{"joined", "drop e1"}; }));
  EXPECT_EQ(communicator_end_->code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(seats_.Find("e1").status().code(), absl::StatusCode::kUnavailable);
}

TEST_F(Joining, KeepsTheOldEpochWhileTheNewOneBegins) {
  FakeCoordinator coordinator;
  Member& member = JoinAsFirst(coordinator);
  member.SendEpoch("e1", {"a"}, 0);
  member.SendEpoch("e2", {"a", "b"}, 0);
  ASSERT_TRUE(member.AwaitEpochReady("e2"));
  EXPECT_TRUE(seats_.Find("e1").ok());
  EXPECT_TRUE(seats_.Find("e2").ok());
  member.Fence("e1");
  ASSERT_TRUE(WaitUntil([&] { return !seats_.Find("e1").ok(); }));
  EXPECT_TRUE(seats_.Find("e2").ok());
}

TEST_F(Joining, TellsOfABrokenEpochOnce) {
  FakeCoordinator coordinator;
  Member& member = JoinAsFirst(coordinator);
  member.SendEpoch("e1", {"a", "b"}, 0);
  ASSERT_TRUE(member.AwaitEpochReady("e1"));
  client_->EpochBroken("e1", absl::UnavailableError("peer gone"));
  client_->EpochBroken("e1", absl::UnavailableError("peer gone"));
  client_->EpochBroken("e0", absl::UnavailableError("of an earlier membership"));
  member.SendEpoch("e2", {"a"}, 0);
  ASSERT_TRUE(member.AwaitEpochReady("e2"));
  int broken = 0;
  member.Await([&](const Member::Seen& seen) {
    broken = 0;
    for (const auto& message : seen.messages) broken += !message.epoch_broken().empty();
    return true;
  });
  EXPECT_EQ(broken, 1);
  EXPECT_EQ(communicator_end_->message(), "peer gone");
}

TEST_F(Joining, TellsOfAnEpochThatItCannotBuild) {
  FakeCoordinator coordinator;
  build_fails_ = true;
  Member& member = JoinAsFirst(coordinator);
  member.SendEpoch("e1", {"a"}, 0);
  EXPECT_TRUE(member.Await([](const Member::Seen& seen) {
    return Says(seen, [](const auto& message) { return message.epoch_broken() == "e1"; });
  }));
}

TEST_F(Joining, SaysThatAnEpochIsReadyWhenItsCommunicatorIsBuilt) {
  FakeCoordinator coordinator;
  build_slowly_ = true;
  Member& member = JoinAsFirst(coordinator);
  member.SendEpoch("e1", {"a", "b"}, 0);
  member.SendEpoch("e2", {"a", "b"}, 0);
  member.SendEpoch("e3", {"a", "b"}, 0);
  ASSERT_TRUE(WaitUntil([&] { return seats_.Find("e3").ok(); }));
  member.Fence("e1");
  ASSERT_TRUE(WaitUntil([&] { return !seats_.Find("e1").ok(); }));
  Line("e1").meet("too late");
  Line("e1").built(absl::OkStatus());
  Line("e2").built(absl::InternalError("no such interface"));
  Line("e3").built(absl::OkStatus());
  ASSERT_TRUE(member.AwaitEpochReady("e3"));
  std::vector<std::string> said;
  member.Await([&](const Member::Seen& seen) {
    for (const auto& message : seen.messages) {
      if (!message.epoch_ready().empty()) said.push_back("ready " + message.epoch_ready());
      if (!message.epoch_broken().empty()) said.push_back("broken " + message.epoch_broken());
      if (message.has_rendezvous()) said.push_back("meet");
    }
    return true;
  });
  EXPECT_THAT(said, ::testing::ElementsAre("broken e2", "ready e3"));
  EXPECT_FALSE(seats_.Find("e2").ok());
}

TEST_F(Joining, PassesTheTokenToTheCoordinatorAndWhatComesBackToTheCommunicator) {
  FakeCoordinator coordinator;
  build_slowly_ = true;
  Member& member = JoinAsFirst(coordinator);
  member.SendEpoch("e1", {"a", "b"}, 0);
  ASSERT_TRUE(WaitUntil([&] { return seats_.Find("e1").ok(); }));
  Line("e1").meet("place");
  EXPECT_TRUE(member.Await([](const Member::Seen& seen) {
    return Says(seen, [](const auto& message) {
      return message.rendezvous().epoch() == "e1" && message.rendezvous().token() == "place";
    });
  }));
  member.Meet("e0", "nobody's");
  member.Meet("e1", "place");
  member.SendEpoch("e2", {"a"}, 0);  // behind it
  ASSERT_TRUE(WaitUntil([&] { return seats_.Find("e2").ok(); }));
  EXPECT_EQ(communicator_end_->message(), "met by place");
}

TEST_F(Joining, ALineMayBeSpokenOnWhenTheClientIsGone) {
  FakeCoordinator coordinator;
  build_slowly_ = true;
  Join(coordinator.address());
  ASSERT_TRUE(coordinator.AwaitJoins(1));
  coordinator.member(0).Welcome("w1");
  coordinator.member(0).SendEpoch("e1", {"a", "b"}, 0);
  ASSERT_TRUE(WaitUntil([&] { return seats_.Find("e1").ok(); }));
  const EpochLine line = Line("e1");
  client_.reset();
  line.meet("place");
  line.built(absl::OkStatus());
  EXPECT_FALSE(seats_.Find("e1").ok());
}

TEST_F(Joining, AnswersForARecalledJobAtOnceAndWhenNothingOfItIsLeft) {
  FakeCoordinator coordinator;
  Member& member = JoinAsFirst(coordinator);
  const auto answers = [&] {
    std::vector<std::string> said;
    member.Await([&](const Member::Seen& seen) {
      for (const auto& message : seen.messages) {
        if (!message.has_recalled()) continue;
        said.push_back(std::to_string(message.recalled().job()) +
                       (message.recalled().held() ? " held" : " free"));
      }
      return true;
    });
    return said;
  };
  member.Recall(7);
  ASSERT_TRUE(WaitUntil([&] { return answers() == std::vector<std::string>{"7 free"}; }));
  holds_ = true;
  member.Recall(8);
  ASSERT_TRUE(WaitUntil([&] { return answers().size() == 2; }));
  int beats = 0;
  member.Await([&](const Member::Seen& seen) { return (beats = seen.heartbeats) >= 0; });
  ASSERT_TRUE(member.Await([&](const Member::Seen& seen) { return seen.heartbeats > beats + 2; }));
  EXPECT_EQ(answers(), (std::vector<std::string>{"7 free", "8 held"}));
  holds_ = false;
  EXPECT_TRUE(WaitUntil([&] {
    return answers() == std::vector<std::string>{"7 free", "8 held", "8 free"};
  }));
}

TEST_F(Joining, LeavesASilentCoordinatorAndJoinsAnew) {
  FakeCoordinator coordinator;
  Join(coordinator.address());
  ASSERT_TRUE(coordinator.AwaitJoins(1));
  coordinator.member(0).Welcome("w1", 10, 100);
  coordinator.member(0).SendEpoch("e1", {"a"}, 0);
  ASSERT_TRUE(coordinator.member(0).AwaitEpochReady("e1"));
  coordinator.member(0).FallSilent();
  ASSERT_TRUE(coordinator.AwaitJoins(2));
  EXPECT_EQ(events(), (std::vector<std::string>{"joined", "not joined", "drop all"}));
  EXPECT_EQ(communicator_end_->code(), absl::StatusCode::kUnavailable);
  coordinator.member(1).Welcome("w2");
  EXPECT_TRUE(WaitUntil([&] { return seats_.worker_id() == "w2"; }));
}

TEST_F(Joining, ComesBackWhenTheCoordinatorEndsTheCallOrNeverWelcomes) {
  FakeCoordinator coordinator;
  Join(coordinator.address());
  ASSERT_TRUE(coordinator.AwaitJoins(1));
  coordinator.member(0).End(grpc::Status(grpc::FAILED_PRECONDITION, "protocol 2, not 1"));
  ASSERT_TRUE(coordinator.AwaitJoins(2));  // says nothing to this one
  ASSERT_TRUE(coordinator.AwaitJoins(3));
  coordinator.member(2).Welcome("w3");
  EXPECT_TRUE(WaitUntil([&] { return seats_.worker_id() == "w3"; }));
}

TEST_F(Joining, WaitsForACoordinatorThatIsNotThereYet) {
  std::string address;
  { address = FakeCoordinator().address(); }
  Join(address);
  ASSERT_TRUE(WaitUntil([&] { return !events().empty(); })) << "gave up nowhere";
  FakeCoordinator coordinator(address);
  EXPECT_TRUE(coordinator.AwaitJoins(1));
}

TEST_F(Joining, LeavesInGoodOrderWhenTheCoordinatorEndsTheCall) {
  FakeCoordinator coordinator;
  Member& member = JoinAsFirst(coordinator);
  ASSERT_TRUE(WaitUntil([&] { return seats_.worker_id() == "w1"; }));
  client_->Leave();
  client_->Leave();
  ASSERT_TRUE(member.Await([](const Member::Seen& seen) {
    return Says(seen, [](const auto& message) { return message.leaving(); });
  }));
  EXPECT_FALSE(client_->WaitUntilLeft(milliseconds(50))) << "did not wait for its jobs";
  member.End(grpc::Status::OK);
  EXPECT_TRUE(client_->WaitUntilLeft(test::kPatience));
  EXPECT_TRUE(client_->farewell().ok()) << client_->farewell();
  EXPECT_EQ(coordinator.joins(), 1);
}

TEST_F(Joining, LeavesAfterItsDrainTimeWhateverIsUnfinished) {
  FakeCoordinator coordinator;
  Join(coordinator.address(), milliseconds(50));
  ASSERT_TRUE(coordinator.AwaitJoins(1));
  coordinator.member(0).Welcome("w1");
  ASSERT_TRUE(WaitUntil([&] { return seats_.worker_id() == "w1"; }));
  client_->Leave();
  EXPECT_TRUE(client_->WaitUntilLeft(test::kPatience));
  EXPECT_EQ(client_->farewell().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(events().back(), "drop all");
}

TEST_F(Joining, LeavesAtOnceWhileItIsNoMember) {
  std::string address;
  { address = FakeCoordinator().address(); }
  Join(address);
  client_->Leave();
  EXPECT_TRUE(client_->WaitUntilLeft(test::kPatience));
}

}  // namespace
}  // namespace ringserve
