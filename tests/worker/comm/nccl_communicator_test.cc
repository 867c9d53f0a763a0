// What NcclCommunicator does beside what every communicator does (conformance.h): on a fake NCCL.
#include "worker/comm/nccl_communicator.h"

#include <algorithm>
#include <atomic>
#include <random>
#include <thread>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/wait.h"
#include "tests/worker/comm/nccl_group.h"
#include "worker/comm/nccl_exchange.h"

namespace ringserve::test {
namespace {

using absl::StatusCode;
using std::chrono::milliseconds;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using Bytes = std::vector<std::byte>;
using Clock = Communicator::Clock;
using Ticket = Communicator::Ticket;

Clock::time_point Soon() { return Clock::now() + kPatience; }

SendOp SendOf(int peer, const Bytes& bytes) {
  return {.peer = peer, .parts = {bytes}, .keep_alive = std::make_shared<int>()};
}

// A post of each of two members: bytes of this value go both ways.
struct Exchange {
  explicit Exchange(size_t size, int value)
      : out(2, Bytes(size, std::byte(value))), in(2, Bytes(size)) {}

  std::vector<Ticket> PostBoth(const NcclGroup::Members& members) {
    std::vector<Ticket> tickets;
    for (int member = 0; member < 2; ++member) {
      const absl::StatusOr<Ticket> ticket =
          members[member]->Post({}, std::vector{SendOf(1 - member, out[member])},
                                std::vector{RecvOp{1 - member, {in[member]}}});
      EXPECT_TRUE(ticket.ok()) << ticket.status();
      tickets.push_back(ticket.value_or(0));
    }
    return tickets;
  }

  bool Arrived() const { return in[0] == out[1] && in[1] == out[0]; }
  bool Touched() const { return in[0] != Bytes(in[0].size()) || in[1] != Bytes(in[1].size()); }

  std::vector<Bytes> out, in;
};

TEST(NcclCommunicator, MakesOneGroupOfAStep) {
  NcclGroup group(3, 1);
  const auto members = group.BuildAll("id", {.steps_ahead = 0});
  Bytes out(10), in_two_parts(7), small(4), rest(6);
  std::vector<Ticket> tickets;
  for (int member = 0; member < 3; ++member) {
    const int next = (member + 1) % 3, previous = (member + 2) % 3;
    std::vector<RecvOp> recvs = {{previous, {small, rest}}};
    if (member != 0) recvs = {{previous, {out}}};
    std::vector<SendOp> sends = {SendOf(next, out), SendOf(previous, {})};
    tickets.push_back(*members[member]->Post({}, sends, recvs));
  }
  std::vector<std::thread> engines;
  engines.reserve(3);
  for (int member = 0; member < 3; ++member) {
    engines.emplace_back(
        [&, member] { EXPECT_TRUE(members[member]->Then(tickets[member], Soon()).ok()); });
  }
  for (std::thread& engine : engines) engine.join();
  // Bytes in parts travel in one piece; nothing is no transfer.
  EXPECT_THAT(group.fabric().launched(0), ElementsAre("0>1:10 0<2:10"));
  EXPECT_THAT(group.fabric().launched(1), ElementsAre("1>2:10 1<0:10"));
  EXPECT_EQ(members[0]->counters()[2].messages_sent, 1u);
  EXPECT_EQ(group.fabric().left_behind(), 0);
}

TEST(NcclCommunicator, LetsTheHostRunTwoPostsAheadAndNoFurther) {
  NcclGroup group(2, 2);
  const auto members = group.BuildAll("id", {.steps_ahead = 2});
  std::vector<Exchange> exchanges;
  exchanges.reserve(3);
  for (int i = 0; i < 3; ++i) exchanges.emplace_back(1'000, i + 1);
  ASSERT_TRUE(WaitUntil([&] { return group.built().size() == 2; }));
  group.fabric().Hold(true);
  std::vector<Ticket> tickets;
  for (int i = 0; i < 2; ++i) {
    tickets = exchanges[i].PostBoth(members);
    std::thread other([&] { EXPECT_TRUE(members[1]->Then(tickets[1], Soon()).ok()); });
    EXPECT_TRUE(members[0]->Then(tickets[0], Soon()).ok());
    other.join();
  }
  EXPECT_EQ(group.fabric().computing_follows(), 4);
  EXPECT_FALSE(exchanges[0].Touched());
  tickets = exchanges[2].PostBoth(members);
  std::thread waiter([&] {
    EXPECT_TRUE(members[0]->Then(tickets[0], Soon()).ok());
    EXPECT_GE(members[0]->counters()[1].messages_received, 1u);
    EXPECT_TRUE(members[0]->Finish(Soon()).ok());
  });
  group.fabric().Hold(false);
  EXPECT_TRUE(members[1]->Finish(Soon()).ok());
  waiter.join();
  for (const Exchange& exchange : exchanges) EXPECT_TRUE(exchange.Arrived());
}

TEST(NcclCommunicator, TheThirdPostWaitsForTheFirst) {
  NcclGroup group(2, 3);
  const auto members = group.BuildAll("id", {.steps_ahead = 2});
  Exchange exchange(1'000, 7);
  ASSERT_TRUE(WaitUntil([&] { return group.built().size() == 2; }));
  group.fabric().Hold(true);
  exchange.PostBoth(members);
  exchange.PostBoth(members);
  const std::vector<Ticket> third = exchange.PostBoth(members);
  EXPECT_EQ(members[0]->Then(third[0], Clock::now() + milliseconds(50)).code(),
            StatusCode::kDeadlineExceeded);
  group.fabric().Hold(false);
}

TEST(NcclCommunicator, SendsWhatWasComputedBeforeThePostAndNotEarlier) {
  NcclGroup group(2, 4);
  const auto members = group.BuildAll("id", {.steps_ahead = 0});
  ASSERT_TRUE(WaitUntil([&] { return group.built().size() == 2; }));
  group.fabric().HoldComputing(true);
  Exchange exchange(1'000, 7);
  const std::vector<Ticket> tickets = exchange.PostBoth(members);
  std::thread other([&] { EXPECT_TRUE(members[1]->Then(tickets[1], Soon()).ok()); });
  EXPECT_FALSE(
      WaitUntil([&] { return members[1]->counters()[0].messages_received > 0; }, milliseconds(50)));
  group.fabric().HoldComputing(false);
  EXPECT_TRUE(members[0]->Then(tickets[0], Soon()).ok());
  other.join();
  EXPECT_TRUE(exchange.Arrived());
}

TEST(NcclCommunicator, EndsWithWhatNcclSays) {
  NcclGroup group(2, 5);
  const auto members = group.BuildAll("id", {.steps_ahead = 0});
  Exchange exchange(1'000, 7);
  ASSERT_TRUE(WaitUntil([&] { return group.built().size() == 2; }));
  group.fabric().Hold(true);
  const std::vector<Ticket> tickets = exchange.PostBoth(members);
  group.fabric().FailNext(0, absl::UnavailableError("remote process exited"));
  const absl::Status status = members[0]->Then(tickets[0], Soon());
  EXPECT_EQ(status, absl::UnavailableError("remote process exited"));
  EXPECT_EQ(members[0]->Post({}, {}, {}).status(), status);
  EXPECT_EQ(members[0]->Finish(Soon()), status);
  group.fabric().Hold(false);
}

TEST(NcclCommunicator, AnAbortFromAnotherThreadFreesTheEngineAndNothingIsWrittenAfterwards) {
  for (uint64_t seed = 10; seed < 30; ++seed) {
    NcclGroup group(2, seed);
    const auto members = group.BuildAll("id", {.steps_ahead = static_cast<int>(seed % 3)});
    Exchange exchange(100'000, 7);
    const bool built = seed % 2 == 1 || WaitUntil([&] { return group.built().size() == 2; });
    ASSERT_TRUE(built);
    group.fabric().Hold(true);
    exchange.PostBoth(members);
    std::thread aborter([&] { members[0]->Abort(absl::CancelledError("fenced")); });
    const absl::Status status = members[0]->Finish(Soon());
    aborter.join();
    EXPECT_EQ(status, absl::CancelledError("fenced"));
    group.fabric().Hold(false);
    // The other one is told of nothing: it waits for its own fence.
    std::thread fence([&] { members[1]->Abort(absl::UnavailableError("fenced, too")); });
    EXPECT_EQ(members[1]->Finish(Soon()).code(), StatusCode::kUnavailable);
    fence.join();
    EXPECT_FALSE(exchange.Touched());
    EXPECT_THAT(group.stuck(), IsEmpty());
  }
}

TEST(NcclCommunicator, LetsGoOfBytesWithTheEnd) {
  NcclGroup group(2, 6);
  const auto members = group.BuildAll("id");
  auto bytes = std::make_shared<Bytes>(100);
  const std::weak_ptr<Bytes> kept = bytes;
  ASSERT_TRUE(members[0]->Post({}, std::vector{SendOp{1, {*bytes}, bytes}}, {}).ok());
  bytes.reset();
  EXPECT_FALSE(kept.expired());
  members[0]->Abort(absl::CancelledError("fenced"));
  EXPECT_FALSE(members[0]->Finish(Soon()).ok());
  EXPECT_TRUE(kept.expired());
}

TEST(NcclCommunicator, ABuildThatNobodyJoinsEndsWithItsFence) {
  NcclGroup group(2, 7);
  const auto alone = group.Build(0);
  alone->Meet("id");
  alone->Abort(absl::UnavailableError("fenced"));
  EXPECT_TRUE(WaitUntil([&] { return group.built().size() == 1; }));
  EXPECT_THAT(group.built(), ElementsAre("UNAVAILABLE: fenced"));
  EXPECT_EQ(alone->Post({}, {}, {}).status(), absl::UnavailableError("fenced"));
}

TEST(NcclCommunicator, SaysWhyABuildCameToNothing) {
  NcclGroup group(1, 8);
  const auto wrong = group.Build(0);
  wrong->Meet("");
  EXPECT_TRUE(WaitUntil([&] { return group.built().size() == 1; }));
  EXPECT_THAT(group.built(), ElementsAre(HasSubstr("not a unique id")));
  EXPECT_EQ(wrong->Finish(Soon()).code(), StatusCode::kInvalidArgument);
  group.fabric().FailNext(0, absl::InternalError("no such interface"));
  const auto failing = group.Build(0);
  failing->Meet("id");
  EXPECT_TRUE(WaitUntil([&] { return group.built().size() == 2; }));
  EXPECT_EQ(group.built().back(), "INTERNAL: no such interface");
  EXPECT_EQ(failing->Finish(Soon()).code(), StatusCode::kInternal);
}

TEST(NcclCommunicator, ADeviceThatDoesNotComeToRestIsToldAndHoldsItsBytes) {
  NcclGroup group(2, 9);
  const auto members = group.BuildAll("id", {.steps_ahead = 0, .abort_patience = milliseconds(20)});
  Exchange exchange(1'000, 7);
  ASSERT_TRUE(WaitUntil([&] { return group.built().size() == 2; }));
  group.fabric().HoldAborts(true);
  auto bytes = std::make_shared<Bytes>(100);
  const std::weak_ptr<Bytes> kept = bytes;
  const absl::StatusOr<Ticket> ticket =
      members[0]->Post({}, std::vector{SendOp{1, {*bytes}, bytes}}, {});
  bytes.reset();
  std::thread engine([&] {
    EXPECT_EQ(members[0]->Then(*ticket, Clock::now()).code(), StatusCode::kDeadlineExceeded);
  });
  EXPECT_TRUE(WaitUntil([&] { return !group.stuck().empty(); }));
  EXPECT_THAT(group.stuck(), ElementsAre("the device does not come to rest"));
  EXPECT_FALSE(kept.expired());
  group.fabric().HoldAborts(false);
  engine.join();
  EXPECT_TRUE(kept.expired());
}

TEST(NcclExchange, LettingGoOfACommunicatorDoesNotWaitForTheDevice) {
  FakeNccl fabric(40);
  std::vector<std::string> stuck;
  {
    NcclExchange exchange(fabric.MakeLibrary(),
                          {.on_stuck = [&](const std::string& what) { stuck.push_back(what); }});
    v1::Epoch epoch;
    epoch.set_id("e1");
    epoch.add_members()->set_address("a:1");
    std::string token;
    std::atomic<bool> built{false};
    auto communicator =
        *exchange.Build(epoch, {.meet = [&](const std::string& made) { token = made; },
                                .built = [&](const absl::Status& status) { built = status.ok(); }});
    EXPECT_FALSE(built);
    communicator->Meet(token);
    ASSERT_TRUE(WaitUntil([&] { return built.load(); }));
    fabric.HoldAborts(true);
    communicator.reset();
    fabric.HoldAborts(false);
  }
  EXPECT_THAT(stuck, IsEmpty());
}

// Epochs come to all members in the same order, but not at the same time; some are given up. The
// others are built, one after the other.
TEST(NcclBuild, GoesByTheOrderOfEpochsAndNobodyWaitsInACircle) {
  constexpr int kEpochs = 6;
  for (int size = 1; size <= 8; ++size) {
    for (uint64_t seed = 0; seed < 4; ++seed) {
      NcclGroup group(size, seed);
      const auto given_up = [&](int epoch) { return (epoch + seed) % 3 == 1; };
      std::vector<std::thread> members;
      members.reserve(size);
      for (int member = 0; member < size; ++member) {
        members.emplace_back([&, member] {
          std::mt19937 random(seed * 100 + member);
          std::vector<std::shared_ptr<NcclCommunicator>> epochs;
          for (int epoch = 0; epoch < kEpochs; ++epoch) {
            std::this_thread::sleep_for(std::chrono::microseconds(random() % 3'000));
            epochs.push_back(group.Build(member));
            // Of some that are given up the unique id never came.
            if (!given_up(epoch) || random() % 2 == 0) {
              epochs.back()->Meet(absl::StrCat("epoch ", epoch));
            }
            if (epoch > 0 && given_up(epoch - 1)) {
              epochs[epoch - 1]->Abort(absl::UnavailableError("fenced"));
            }
          }
          for (int epoch = 0; epoch < kEpochs; ++epoch) {
            if (given_up(epoch)) epochs[epoch]->Abort(absl::UnavailableError("fenced"));
          }
          const auto expected = static_cast<size_t>(size) * kEpochs;
          EXPECT_TRUE(WaitUntil([&] { return group.built().size() == expected; }));
        });
      }
      for (std::thread& member : members) member.join();
      const std::vector<std::string> built = group.built();
      for (int epoch = 0, wanted = 0; epoch < kEpochs; ++epoch) {
        if (!given_up(epoch)) wanted += size;
        if (epoch + 1 < kEpochs) continue;
        EXPECT_GE(std::count(built.begin(), built.end(), "OK"), wanted);
      }
      EXPECT_EQ(group.fabric().most_building_at_once(), 1);
    }
  }
}

}  // namespace
}  // namespace ringserve::test
