// Conformance, second part: how a communicator ends, and that nothing outlasts its end.
#include <algorithm>
#include <random>
#include <thread>

#include "absl/strings/match.h"
#include "tests/worker/comm/conformance.h"

namespace ringserve::test {
namespace {

using absl::StatusCode;
using std::chrono::milliseconds;
using Ticket = Communicator::Ticket;

constexpr std::byte kUntouched{0xA5};
constexpr char kSeesNoPeers[] = "this transport neither sees what a peer does nor how far it is";

bool Untouched(const Bytes& bytes) {
  return std::all_of(bytes.begin(), bytes.end(), [](std::byte byte) { return byte == kUntouched; });
}

TEST_P(CommunicatorTest, RefusesAPostThatBreaksTheRules) {
  const std::vector<std::function<absl::Status(Communicator&)>> wrong = {
      [](Communicator& c) { return c.Post({}, std::vector{SendOf(0, {})}, {}).status(); },
      [](Communicator& c) { return c.Post({}, std::vector{SendOf(2, {})}, {}).status(); },
      [](Communicator& c) { return c.Post({}, std::vector{SendOf(-1, {})}, {}).status(); },
      [](Communicator& c) { return c.Post({}, {}, std::vector{RecvOp{.peer = 0}}).status(); },
      [](Communicator& c) { return c.Post({}, {}, std::vector{RecvOp{.peer = 2}}).status(); },
      [](Communicator& c) {
        return c.Post({}, std::vector{SendOf(1, {}), SendOf(1, {})}, {}).status();
      },
      [](Communicator& c) {
        return c.Post({}, {}, std::vector{RecvOp{.peer = 1}, RecvOp{.peer = 1}}).status();
      },
      [](Communicator& c) { return c.Post({}, std::vector{SendOp{.peer = 1}}, {}).status(); }};
  Run(2, [&](Rank& rank) {
    for (size_t i = 0; rank.index() == 0 && i < wrong.size(); ++i) {
      const std::shared_ptr<Communicator> communicator = rank.Build(absl::StrCat("e", i));
      REQUIRE_CODE(wrong[i](*communicator), StatusCode::kInternal);
      RequireEnded(*communicator, StatusCode::kInternal);
    }
    rank.Meet();
  });
}

// What rank 1 receives from rank 0 differs from what that sends. Then rank 1 fails, and rank 0 sees
// it, too.
void RequireMismatch(Rank& rank, const TransferTag& sent, size_t sent_size,
                     const TransferTag& expected, size_t expected_size) {
  const std::shared_ptr<Communicator> communicator = rank.Build();
  if (rank.index() == 0) {
    const Bytes out(sent_size);
    MustPost(*communicator, sent, {SendOf(1, out)}, {});
    Bytes in(1, kUntouched);
    const absl::StatusOr<Ticket> ticket =
        communicator->Post({.job = 9}, {}, std::vector{RecvInto(1, in)});
    const absl::Status status = ticket.ok() ? communicator->Then(*ticket, Soon()) : ticket.status();
    REQUIRE(absl::IsInternal(status) || absl::IsUnavailable(status));
    REQUIRE(Untouched(in));
  } else {
    Bytes in(expected_size, kUntouched);
    const absl::StatusOr<Ticket> ticket =
        communicator->Post(expected, {}, std::vector{RecvInto(0, in)});
    REQUIRE_CODE(ticket.ok() ? communicator->Then(*ticket, Soon()) : ticket.status(),
                 StatusCode::kInternal);
    REQUIRE(Untouched(in));
    RequireEnded(*communicator, StatusCode::kInternal);
  }
  rank.Meet();
}

TEST_P(CommunicatorTest, EndsOnATransferOfAnotherSize) {
  if (!GetParam().sees_peers) GTEST_SKIP() << kSeesNoPeers;
  for (const auto& [sent, expected] :
       {std::pair<size_t, size_t>{0, 1}, {1, 0}, {5 << 20, (5 << 20) + 1}, {1001, 1000}}) {
    Run(2, [&, sent = sent, expected = expected](Rank& rank) {
      RequireMismatch(rank, {.job = 1}, sent, {.job = 1}, expected);
    });
  }
}

TEST_P(CommunicatorTest, EndsOnATransferOfAnotherJobOrStep) {
  if (!GetParam().carries_tags) GTEST_SKIP() << "this transport has no tags";
  Run(2, [](Rank& rank) { RequireMismatch(rank, {.job = 1}, 100, {.job = 2}, 100); });
  Run(2, [](Rank& rank) {
    RequireMismatch(rank, {.job = 1, .step = 2}, 5 << 20, {.job = 1, .step = 1}, 5 << 20);
  });
}

TEST_P(CommunicatorTest, EndsWhenAPeerDoesNotComeInTime) {
  Run(2, [sees_peers = GetParam().sees_peers](Rank& rank) {
    const std::shared_ptr<Communicator> communicator = rank.Build();
    if (rank.index() == 0) {
      Bytes in(100, kUntouched);
      const Ticket ticket = MustPost(*communicator, {}, {}, {RecvInto(1, in)});
      const auto begin = Now();
      const absl::Status late = communicator->Then(ticket, begin + milliseconds(150));
      REQUIRE_CODE(late, StatusCode::kDeadlineExceeded);
      REQUIRE(Now() - begin >= milliseconds(150));
      REQUIRE(absl::StrContains(late.message(), "worker 1"));
      RequireEnded(*communicator, StatusCode::kDeadlineExceeded);
      REQUIRE(Untouched(in));
    } else if (sees_peers) {
      // It learns that the other has given up.
      Bytes in(100, kUntouched);
      const absl::StatusOr<Ticket> ticket =
          communicator->Post({}, {}, std::vector{RecvInto(0, in)});
      REQUIRE_CODE(ticket.ok() ? communicator->Then(*ticket, Soon()) : ticket.status(),
                   StatusCode::kUnavailable);
      REQUIRE(Untouched(in));
    }
    rank.Meet();
  });
}

TEST_P(CommunicatorTest, ADeadlineThatHasPassedStillTakesWhatIsComplete) {
  Run(2, [](Rank& rank) {
    const std::shared_ptr<Communicator> communicator = rank.Build();
    const Bytes out = Pattern(1000, rank.index());
    Bytes in(out.size());
    const Ticket ticket =
        MustPost(*communicator, {}, {SendOf(rank.next(), out)}, {RecvInto(rank.next(), in)});
    REQUIRE_OK(communicator->Then(ticket, Soon()));
    REQUIRE_OK(communicator->Then(ticket, Now() - milliseconds(1)));
    REQUIRE_OK(communicator->Finish(Now() - milliseconds(1)));
    rank.Meet();
  });
}

// Rank 0 waits for what never comes; another thread ends it.
TEST_P(CommunicatorTest, AbortFreesABlockedThread) {
  if (!GetParam().sees_peers) GTEST_SKIP() << kSeesNoPeers;
  for (const bool finish : {false, true}) {
    Run(2, [finish](Rank& rank) {
      const std::shared_ptr<Communicator> communicator = rank.Build();
      Bytes in(100, kUntouched);
      const Bytes out(64 << 20);  // more than any transport takes without a receiver
      const absl::StatusOr<Ticket> ticket = communicator->Post(
          {}, std::vector{SendOf(rank.next(), out)}, std::vector{RecvInto(rank.next(), in)});
      if (rank.index() == 0) {
        REQUIRE_OK(ticket.status());
        std::thread aborter([&] { communicator->Abort(absl::CancelledError("enough")); });
        const absl::Status status =
            finish ? communicator->Finish(Soon()) : communicator->Then(*ticket, Soon());
        aborter.join();
        REQUIRE(status.code() != StatusCode::kDeadlineExceeded);
        REQUIRE(!status.ok());
        communicator->Abort(absl::InternalError("the second reason does not count"));
        REQUIRE(communicator->Finish(Soon()) == status);
      } else {
        // It may have heard of the end before it could post.
        REQUIRE(!ticket.ok() || !communicator->Then(*ticket, Soon()).ok());
      }
      REQUIRE(Untouched(in));
      rank.Meet();
    });
  }
}

TEST_P(CommunicatorTest, AbortWhileNothingRunsIsRemembered) {
  Run(2, [](Rank& rank) {
    const std::shared_ptr<Communicator> communicator = rank.Build();
    communicator->Abort(absl::CancelledError("enough"));
    RequireEnded(*communicator, StatusCode::kCancelled);
    REQUIRE(communicator->Finish(Soon()).message() == "enough");
    rank.Meet();
  });
}

// Rank 1 aborts in the middle of a transfer, while rank 0 goes on sending.
TEST_P(CommunicatorTest, WritesNothingAfterAnErrorWasReturned) {
  if (!GetParam().sees_peers) GTEST_SKIP() << kSeesNoPeers;
  for (int round = 0; round < 3; ++round) {
    Run(2, [](Rank& rank) {
      const std::shared_ptr<Communicator> communicator = rank.Build();
      if (rank.index() == 0) {
        auto bytes = std::make_shared<Bytes>(64 << 20);
        const std::weak_ptr<Bytes> kept = bytes;
        const Ticket ticket = MustPost(
            *communicator, {},
            {{.peer = 1, .parts = {std::span<const std::byte>(*bytes)}, .keep_alive = bytes}}, {});
        bytes.reset();
        REQUIRE_CODE(communicator->Then(ticket, Soon()), StatusCode::kUnavailable);
        REQUIRE(WaitUntil([&] { return kept.expired(); }));
      } else {
        Bytes in(64 << 20, kUntouched);
        const Ticket ticket = MustPost(*communicator, {}, {}, {RecvInto(0, in)});
        std::thread aborter([&] {
          WaitUntil([&] { return communicator->counters()[0].bytes_received > 0; });
          communicator->Abort(absl::CancelledError("enough"));
        });
        const absl::Status status = communicator->Then(ticket, Soon());
        const Bytes then = in;
        aborter.join();
        REQUIRE_CODE(status, StatusCode::kCancelled);
        REQUIRE(communicator->counters()[0].bytes_received < in.size());
        rank.Meet();  // rank 0 has stopped sending
        REQUIRE(in == then);
        return;
      }
      rank.Meet();
    });
  }
}

// One that leaves in good order, with nothing pending, is nobody's fault.
TEST_P(CommunicatorTest, OutlivesAPeerThatIsNotNeededAnyMore) {
  Run(3, [sees_peers = GetParam().sees_peers](Rank& rank) {
    std::shared_ptr<Communicator> communicator = rank.Build();
    Turn(rank, *communicator, {.job = 1}, 100'000);
    rank.Meet();
    if (rank.index() == 2) communicator.reset();
    rank.Meet();
    if (rank.index() == 2) {
      rank.Meet();
      rank.Meet();
      return;
    }
    const int peer = 1 - rank.index();
    for (uint32_t step = 0; step < 20; ++step) {
      const Bytes out = Pattern(200'000, Seed(rank.index(), peer, {.job = 2, .step = step}));
      Bytes in(out.size());
      REQUIRE_OK(communicator->Then(MustPost(*communicator, {.job = 2, .step = step},
                                             {SendOf(peer, out)}, {RecvInto(peer, in)}),
                                    Soon()));
      REQUIRE(in == Pattern(in.size(), Seed(peer, rank.index(), {.job = 2, .step = step})));
    }
    rank.Meet();  // the next post ends the communicator, and with it what the other still waits for
    Bytes in(10, kUntouched);
    const absl::StatusOr<Ticket> ticket =
        communicator->Post({.job = 3}, {}, std::vector{RecvInto(2, in)});
    const auto deadline = sees_peers ? Soon() : Now() + milliseconds(100);
    REQUIRE_CODE(ticket.ok() ? communicator->Then(*ticket, deadline) : ticket.status(),
                 sees_peers ? StatusCode::kUnavailable : StatusCode::kDeadlineExceeded);
    REQUIRE(Untouched(in));
    rank.Meet();
  });
}

// All ranks exchange without a pause; one of them is aborted at any moment.
TEST_P(CommunicatorTest, EndsForAllWheneverOneIsAborted) {
  if (!GetParam().sees_peers) GTEST_SKIP() << kSeesNoPeers;
  for (int round = 0; round < 20; ++round) {
    Run(3, [round](Rank& rank) {
      const std::shared_ptr<Communicator> communicator = rank.Build();
      std::thread aborter;
      if (rank.index() == round % 3) {
        aborter = std::thread([&] {
          std::mt19937 random(round);
          const uint64_t bytes = std::uniform_int_distribution<uint64_t>(0, 20'000'000)(random);
          WaitUntil(
              [&] { return communicator->counters()[rank.previous()].bytes_received >= bytes; });
          communicator->Abort(absl::CancelledError("enough"));
        });
      }
      const Bytes out(300'001);
      Bytes in(out.size());
      absl::Status status;
      for (uint32_t step = 0; status.ok(); ++step) {
        const absl::StatusOr<Ticket> ticket =
            communicator->Post({.job = 1, .step = step}, std::vector{SendOf(rank.next(), out)},
                               std::vector{RecvInto(rank.previous(), in)});
        status = ticket.ok() ? communicator->Then(*ticket, Soon()) : ticket.status();
      }
      if (aborter.joinable()) aborter.join();
      REQUIRE_CODE(status,
                   rank.index() == round % 3 ? StatusCode::kCancelled : StatusCode::kUnavailable);
      rank.Meet();
    });
  }
}

}  // namespace
}  // namespace ringserve::test
