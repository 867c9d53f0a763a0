#include "tests/worker/comm/conformance.h"

namespace ringserve::test {

uint64_t Seed(int from, int to, const TransferTag& tag) {
  return ((tag.job * 1000 + tag.step) * 16 + from) * 16 + to;
}

SendOp SendOf(int peer, const Bytes& bytes) {
  const auto kept = std::make_shared<const Bytes>(bytes);
  return {.peer = peer, .parts = {*kept}, .keep_alive = kept};
}

RecvOp RecvInto(int peer, Bytes& bytes) { return {.peer = peer, .parts = {bytes}}; }

Communicator::Ticket MustPost(Communicator& communicator, const TransferTag& tag,
                              const std::vector<SendOp>& sends, const std::vector<RecvOp>& recvs) {
  const absl::StatusOr<Communicator::Ticket> ticket = communicator.Post(tag, sends, recvs);
  REQUIRE_OK(ticket.status());
  return *ticket;
}

void Turn(Rank& rank, Communicator& communicator, const TransferTag& tag, size_t size) {
  const Bytes out = Pattern(size, Seed(rank.index(), rank.next(), tag));
  Bytes in(size);
  const auto ticket =
      MustPost(communicator, tag, {SendOf(rank.next(), out)}, {RecvInto(rank.previous(), in)});
  REQUIRE_OK(communicator.Then(ticket, Soon()));
  REQUIRE(in == Pattern(size, Seed(rank.previous(), rank.index(), tag)));
}

void RequireMoved(const Communicator& communicator, int peer, const PeerCounters& expected) {
  const PeerCounters moved = communicator.counters()[peer];
  REQUIRE(moved.bytes_sent == expected.bytes_sent);
  REQUIRE(moved.bytes_received == expected.bytes_received);
  REQUIRE(moved.messages_sent == expected.messages_sent);
  REQUIRE(moved.messages_received == expected.messages_received);
}

void RequireEnded(Communicator& communicator, absl::StatusCode code) {
  const absl::Status finished = communicator.Finish(Soon());
  REQUIRE_CODE(finished, code);
  REQUIRE_CODE(communicator.Post({}, {}, {}).status(), code);
  REQUIRE(communicator.Then(1, Soon()) == finished);
  REQUIRE(communicator.Finish(Soon()) == finished);
}

}  // namespace ringserve::test
