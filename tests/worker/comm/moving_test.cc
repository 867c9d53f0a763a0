// Conformance, first part: bytes arrive, and are counted.
#include <algorithm>
#include <filesystem>

#include "tests/worker/comm/conformance.h"

namespace ringserve::test {
namespace {

using Ticket = Communicator::Ticket;

TEST_P(CommunicatorTest, CarriesTurnsOfTheRingOfEverySize) {
  for (const int ranks : {2, 3, 4}) {
    Run(ranks, [](Rank& rank) {
      const std::shared_ptr<Communicator> communicator = rank.Build();
      uint64_t bytes = 0, messages = 0;
      uint32_t step = 0;
      for (const size_t size :
           {0, 1, 3, 255, 256, 257, 65'537, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, (5 << 20) + 3}) {
        Turn(rank, *communicator, {.job = 7, .step = step++}, size);
        bytes += size;
        ++messages;
      }
      REQUIRE_OK(communicator->Finish(Soon()));
      if (rank.ranks() == 2) {
        RequireMoved(*communicator, rank.next(), {bytes, bytes, messages, messages});
      } else {
        RequireMoved(*communicator, rank.next(), {bytes, 0, messages, 0});
        RequireMoved(*communicator, rank.previous(), {0, bytes, 0, messages});
      }
      RequireMoved(*communicator, rank.index(), {});
      rank.Meet();
    });
  }
}

TEST_P(CommunicatorTest, OfOneRankHasNothingToMove) {
  Run(1, [](Rank& rank) {
    const std::shared_ptr<Communicator> communicator = rank.Build();
    const Ticket ticket = MustPost(*communicator, {}, {}, {});
    REQUIRE_OK(communicator->Then(ticket, Now()));
    REQUIRE_OK(communicator->Finish(Now()));
    REQUIRE(communicator->counters().size() == 1);
  });
}

// The two sides cut the transfer differently, and leave some parts empty.
std::vector<std::span<std::byte>> Cut(Bytes& bytes, const std::vector<size_t>& cuts) {
  std::vector<std::span<std::byte>> parts;
  size_t begin = 0;
  for (const size_t cut : cuts) {
    const size_t end = std::min(cut, bytes.size());
    parts.push_back(std::span(bytes).subspan(begin, end - begin));
    begin = end;
  }
  parts.push_back(std::span(bytes).subspan(begin));
  return parts;
}

TEST_P(CommunicatorTest, GathersFromAllInOnePost) {
  for (const int ranks : {2, 4}) {
    Run(ranks, [](Rank& rank) {
      constexpr TransferTag kTag = {.job = 3, .step = 1};
      const auto size_of = [](int owner) { return static_cast<size_t>(owner) * 1'300'001; };
      const std::shared_ptr<Communicator> communicator = rank.Build();
      Bytes own = Pattern(size_of(rank.index()), rank.index());
      std::vector<Bytes> shards(rank.ranks());
      std::vector<SendOp> sends;
      std::vector<RecvOp> recvs;
      for (int peer = 0; peer < rank.ranks(); ++peer) {
        if (peer == rank.index()) continue;
        shards[peer].resize(size_of(peer));
        SendOp send{.peer = peer, .keep_alive = std::make_shared<int>()};
        for (const auto& part : Cut(own, {0, 100, 100, 1'200'000})) send.parts.push_back(part);
        sends.push_back(std::move(send));
        recvs.push_back({.peer = peer, .parts = Cut(shards[peer], {7, 1 << 20, 1 << 20})});
      }
      REQUIRE_OK(communicator->Then(MustPost(*communicator, kTag, sends, recvs), Soon()));
      for (int peer = 0; peer < rank.ranks(); ++peer) {
        if (peer == rank.index()) continue;
        REQUIRE(shards[peer] == Pattern(size_of(peer), peer));
        RequireMoved(*communicator, peer, {size_of(rank.index()), size_of(peer), 1, 1});
      }
      rank.Meet();
    });
  }
}

TEST_P(CommunicatorTest, KeepsSeveralPostsInTheirOrder) {
  Run(3, [](Rank& rank) {
    constexpr int kPosts = 6;
    const auto size_of = [](uint32_t step) { return static_cast<size_t>(step) * 400'000; };
    const std::shared_ptr<Communicator> communicator = rank.Build();
    std::vector<Bytes> out(kPosts), in(kPosts);
    std::vector<Ticket> tickets;
    for (uint32_t step = 0; step < kPosts; ++step) {
      const TransferTag tag = {.job = 1, .step = step};
      out[step] = Pattern(size_of(step), Seed(rank.index(), rank.next(), tag));
      in[step].resize(size_of(step));
      tickets.push_back(MustPost(*communicator, tag, {SendOf(rank.next(), out[step])},
                                 {RecvInto(rank.previous(), in[step])}));
    }
    std::reverse(tickets.begin(), tickets.end());  // any order of waiting will do
    for (const Ticket ticket : tickets) REQUIRE_OK(communicator->Then(ticket, Soon()));
    for (uint32_t step = 0; step < kPosts; ++step) {
      const TransferTag tag = {.job = 1, .step = step};
      REQUIRE(in[step] == Pattern(size_of(step), Seed(rank.previous(), rank.index(), tag)));
    }
    rank.Meet();
  });
}

TEST_P(CommunicatorTest, ServesDisjointSubsetsAtOnce) {
  Run(4, [](Rank& rank) {
    const std::shared_ptr<Communicator> communicator = rank.Build();
    const int peer = (rank.index() + 2) % 4;  // {0, 2} have one job, {1, 3} another
    const uint64_t job = 10 + rank.index() % 2;
    for (uint32_t step = 0; step < 5; ++step) {
      const TransferTag tag = {.job = job, .step = step};
      const Bytes out = Pattern(700'000, Seed(rank.index(), peer, tag));
      Bytes in(out.size());
      REQUIRE_OK(communicator->Then(
          MustPost(*communicator, tag, {SendOf(peer, out)}, {RecvInto(peer, in)}), Soon()));
      REQUIRE(in == Pattern(out.size(), Seed(peer, rank.index(), tag)));
    }
    RequireMoved(*communicator, rank.next(), {});
    rank.Meet();
  });
}

// The ring writes the next shard into memory that it has just sent from.
TEST_P(CommunicatorTest, IsThroughWithTheBytesOfACompleteSend) {
  Run(2, [](Rank& rank) {
    const std::shared_ptr<Communicator> communicator = rank.Build();
    Bytes out(3 << 20), in(3 << 20);
    for (uint32_t step = 0; step < 15; ++step) {
      const TransferTag tag = {.job = 1, .step = step};
      out = Pattern(out.size(), Seed(rank.index(), rank.next(), tag));
      auto keep_alive = std::make_shared<int>();
      const std::weak_ptr<int> kept = keep_alive;
      const Ticket ticket =
          MustPost(*communicator, tag,
                   {{.peer = rank.next(), .parts = {out}, .keep_alive = std::move(keep_alive)}},
                   {RecvInto(rank.next(), in)});
      REQUIRE_OK(communicator->Then(ticket, Soon()));
      std::fill(out.begin(), out.end(), std::byte{0xFF});
      REQUIRE(kept.expired());
      REQUIRE(in == Pattern(in.size(), Seed(rank.next(), rank.index(), tag)));
    }
    rank.Meet();
  });
}

TEST_P(CommunicatorTest, WaitsForAPeerThatHearsOfTheEpochLater) {
  Run(2, [](Rank& rank) {
    constexpr int kPosted = 0;
    if (rank.index() == 1) rank.Await(kPosted);
    const std::shared_ptr<Communicator> communicator = rank.Build();
    const Bytes out = Pattern(2 << 20, rank.index());
    Bytes in(out.size());
    const Ticket ticket =
        MustPost(*communicator, {}, {SendOf(rank.next(), out)}, {RecvInto(rank.next(), in)});
    if (rank.index() == 0) {
      // Long enough for a first refusal.
      REQUIRE(!WaitUntil([&] { return communicator->counters()[1].bytes_received > 0; },
                         std::chrono::milliseconds(100)));
      rank.Give(kPosted);
    }
    REQUIRE_OK(communicator->Then(ticket, Soon()));
    REQUIRE(in == Pattern(in.size(), rank.next()));
    rank.Meet();
  });
}

TEST_P(CommunicatorTest, KeepsEpochsApart) {
  Run(2, [](Rank& rank) {
    constexpr TransferTag kTag = {.job = 1, .step = 0};
    const std::shared_ptr<Communicator> old = rank.Build("e1");
    const Bytes stale = Pattern(1000, 99), out = Pattern(1000, rank.index());
    // Nobody receives this in its own epoch. It may be on the other side already.
    MustPost(*old, kTag, {SendOf(rank.next(), stale)}, {});
    rank.Meet();
    const std::shared_ptr<Communicator> communicator = rank.Build("e2");
    Bytes in(out.size());
    REQUIRE_OK(communicator->Then(
        MustPost(*communicator, kTag, {SendOf(rank.next(), out)}, {RecvInto(rank.next(), in)}),
        Soon()));
    REQUIRE(in == Pattern(in.size(), rank.next()));
    old->Abort(absl::UnavailableError("fenced"));
    Turn(rank, *communicator, {.job = 2, .step = 0}, 100'000);
    RequireMoved(*communicator, rank.next(), {101'000, 101'000, 2, 2});
    rank.Meet();
  });
}

size_t EntriesOf(const char* folder) {
  return static_cast<size_t>(std::distance(std::filesystem::directory_iterator(folder),
                                           std::filesystem::directory_iterator()));
}

TEST_P(CommunicatorTest, LeavesNoDescriptorsAndThreadsBehind) {
  Run(3, [](Rank& rank) {
    size_t files = SIZE_MAX, threads = SIZE_MAX;
    for (int round = 0; round < 50; ++round) {
      {
        const std::shared_ptr<Communicator> communicator = rank.Build(absl::StrCat("e", round));
        Turn(rank, *communicator, {.job = 1, .step = 0}, 10'000);
        rank.Meet();
        if (round % 2 == 1) communicator->Abort(absl::UnavailableError("fenced"));
      }
      if (round >= 2 && round < 10) {
        files = std::min(files, EntriesOf("/proc/self/fd"));
        threads = std::min(threads, EntriesOf("/proc/self/task"));
      }
    }
    rank.Meet();
    REQUIRE(WaitUntil([&] { return EntriesOf("/proc/self/fd") <= files; }));
    // The transport's pools may grow to what the machine has cores for, but not by the round.
    REQUIRE(WaitUntil([&] { return EntriesOf("/proc/self/task") <= threads + 10; }));
    rank.Meet();
  });
}

}  // namespace
}  // namespace ringserve::test
