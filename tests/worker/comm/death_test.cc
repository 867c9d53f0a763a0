// Conformance, third part: processes that are killed and stopped in the middle of an exchange.
#include <signal.h>

#include <thread>

#include "absl/strings/match.h"
#include "tests/worker/comm/conformance.h"

namespace ringserve::test {
namespace {

using absl::StatusCode;
using std::chrono::milliseconds;
using Ticket = Communicator::Ticket;

// Exchanges round the ring until something breaks; a rank gives the sign `moving` at its first
// turn.
absl::Status TurnUntilBroken(Rank& rank, Communicator& communicator, int moving,
                             milliseconds patience, Bytes& in) {
  const Bytes out(in.size());
  for (uint32_t step = 0;; ++step) {
    const absl::StatusOr<Ticket> ticket =
        communicator.Post({.job = 1, .step = step}, std::vector{SendOf(rank.next(), out)},
                          std::vector{RecvInto(rank.previous(), in)});
    if (!ticket.ok()) return ticket.status();
    const absl::Status status = communicator.Then(*ticket, Now() + patience);
    if (!status.ok()) return status;
    if (step == 3) rank.Give(moving);
  }
}

TEST_P(CommunicatorTest, SeesTheDeathOfAPeerInTheMiddleOfAnExchange) {
  for (const size_t size : {10, 20 << 20}) {
    Run(3,
        [size](Rank& rank) {
          const std::shared_ptr<Communicator> communicator = rank.Build();
          Bytes in(size);
          if (rank.index() == 0) {
            std::thread([&] {
              rank.Await(1);
              rank.Await(2);
              raise(SIGKILL);
            }).detach();
          }
          const absl::Status status =
              TurnUntilBroken(rank, *communicator, rank.index(), kPatience, in);
          REQUIRE_CODE(status, StatusCode::kUnavailable);
          REQUIRE(absl::StrContains(status.message(), "lost worker"));
        },
        {0});
  }
}

TEST_P(CommunicatorTest, SeesTheDeathOfAPeerThatIsOnlyToSend) {
  Run(2,
      [](Rank& rank) {
        const std::shared_ptr<Communicator> communicator = rank.Build();
        if (rank.index() == 0) {
          rank.Await(1);
          raise(SIGKILL);
        }
        Bytes in(10);
        const Ticket ticket = MustPost(*communicator, {}, {}, {RecvInto(0, in)});
        rank.Give(1);
        REQUIRE_CODE(communicator->Then(ticket, Soon()), StatusCode::kUnavailable);
      },
      {0});
}

TEST_P(CommunicatorTest, SeesThatAPeerWasDeadBeforeTheFirstExchange) {
  Run(2,
      [](Rank& rank) {
        const std::shared_ptr<Communicator> communicator = rank.Build();
        rank.Meet();
        if (rank.index() == 0) raise(SIGKILL);
        // Its socket may still be there for a moment.
        REQUIRE(WaitUntil([&] { return ProcessState(rank.pid_of(0)) == 'Z'; }));
        const Bytes out(10);
        const absl::StatusOr<Ticket> ticket =
            communicator->Post({}, std::vector{SendOf(0, out)}, {});
        REQUIRE_CODE(ticket.ok() ? communicator->Then(*ticket, Soon()) : ticket.status(),
                     StatusCode::kUnavailable);
      },
      {0});
}

// A stopped process keeps its connections: only the deadline tells. When it wakes, it must not
// reach anybody's memory.
TEST_P(CommunicatorTest, GivesUpAStoppedPeerAtTheDeadline) {
  Run(3, [](Rank& rank) {
    constexpr int kGivenUp[] = {3, 4, 5};
    const std::shared_ptr<Communicator> communicator = rank.Build();
    Bytes in(20 << 20);
    if (rank.index() == 1) {
      // A third process must wake it.
      std::thread([&] {
        rank.Await(0);
        rank.Await(2);
        raise(SIGSTOP);
      }).detach();
    }
    const milliseconds patience = rank.index() == 1 ? kPatience : milliseconds(500) * kSlowness;
    const absl::Status status = TurnUntilBroken(rank, *communicator, rank.index(), patience, in);
    REQUIRE(absl::IsDeadlineExceeded(status) || absl::IsUnavailable(status));
    const Bytes then = in;
    if (rank.index() != 1) {
      RequireEnded(*communicator, status.code());
      rank.Give(kGivenUp[rank.index()]);
      rank.Await(kGivenUp[0]);
      rank.Await(kGivenUp[2]);
      kill(rank.pid_of(1), SIGCONT);
    }
    rank.Meet();  // the stopped one is awake, and through
    REQUIRE(in == then);
  });
}

TEST_P(CommunicatorTest, LetsGoOfBytesThatAStoppedPeerDidNotReadWhenItDies) {
  Run(2,
      [](Rank& rank) {
        std::shared_ptr<Communicator> communicator = rank.Build();
        if (rank.index() == 1) {
          Bytes in(64 << 20);
          const Ticket ticket = MustPost(*communicator, {}, {}, {RecvInto(0, in)});
          WaitUntil([&] { return communicator->counters()[0].bytes_received > 0; });
          raise(SIGSTOP);
          static_cast<void>(communicator->Then(ticket, Soon()));
          return;
        }
        auto bytes = std::make_shared<Bytes>(64 << 20);
        const std::weak_ptr<Bytes> kept = bytes;
        const Ticket ticket = MustPost(
            *communicator, {},
            {{.peer = 1, .parts = {std::span<const std::byte>(*bytes)}, .keep_alive = bytes}}, {});
        bytes.reset();
        const absl::Status status =
            communicator->Then(ticket, Now() + milliseconds(1'000) * kSlowness);
        REQUIRE_CODE(status, StatusCode::kDeadlineExceeded);
        communicator.reset();
        kill(rank.pid_of(1), SIGKILL);
        REQUIRE(WaitUntil([&] { return kept.expired(); }));
      },
      {1});
}

}  // namespace
}  // namespace ringserve::test
