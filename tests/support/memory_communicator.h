// A communicator between threads of one process: bytes are copied from the sender's memory into the
// receiver's as soon as both sides have posted. For tests whose subject is not the transport.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "worker/comm/communicator.h"

namespace ringserve::test {

class MemoryCommunicator : public Communicator {
 public:
  // One for each of `members`, connected. The first error or Abort of one ends all of them.
  static std::vector<std::unique_ptr<MemoryCommunicator>> Connect(int members);

  absl::StatusOr<Ticket> Post(const TransferTag& tag, std::span<const SendOp> sends,
                              std::span<const RecvOp> recvs) override;
  absl::Status Then(Ticket ticket, Clock::time_point deadline) override;
  absl::Status Finish(Clock::time_point deadline) override;
  void Abort(absl::Status reason) override;
  std::vector<PeerCounters> counters() const override;

 private:
  // What the members share.
  struct Hub {
    struct Send {
      TransferTag tag;
      SendOp op;
      Ticket ticket = 0;
    };
    struct Recv {
      TransferTag tag;
      RecvOp op;
      Ticket ticket = 0;
    };
    // From one member to another, in the order of the posts.
    struct Way {
      std::deque<Send> sends;
      std::deque<Recv> recvs;
    };
    struct Member {
      Ticket posts = 0;
      std::map<Ticket, int> unfinished;  // transfers
      std::vector<PeerCounters> counters;
    };

    absl::Mutex mu;
    absl::Status ended ABSL_GUARDED_BY(mu);
    std::map<std::pair<int, int>, Way> ways ABSL_GUARDED_BY(mu);  // by (from, to)
    std::vector<Member> members ABSL_GUARDED_BY(mu);

    // Moves what both sides of the way have posted.
    void Move(int from, int to) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  };

  MemoryCommunicator(std::shared_ptr<Hub> hub, int self) : hub_(std::move(hub)), self_(self) {}
  // Waits until no ticket up to `last` has an unfinished transfer.
  absl::Status Await(Ticket last, Clock::time_point deadline);

  const std::shared_ptr<Hub> hub_;
  const int self_;
};

}  // namespace ringserve::test
