// Moves bytes between the workers of one epoch. Narrow on purpose: gRPC streams between CPU workers
// and NCCL between GPUs both fit behind it.
//
// One thread (the engine) posts and waits; Abort and counters may be called from any thread. Never
// repaired: the first error ends the communicator, and a new epoch builds a new one. Nothing blocks
// past its deadline. Members are indices in the epoch's member list.
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace ringserve {

// What both ends of a transfer must agree on; a transport that can carry tags checks it.
struct TransferTag {
  uint64_t job = 0;
  uint32_t step = 0;

  friend bool operator==(const TransferTag&, const TransferTag&) = default;
};

// `parts` are sent back to back as one transfer; they stay unchanged until it is finished. A
// transport may hold on to bytes of a broken transfer for as long as a stopped peer does not read
// them: `keep_alive` owns them, is never null, and is released, on any thread, when nothing reads
// them any more. After an error the bytes must not be written again.
struct SendOp {
  int peer = 0;
  std::vector<std::span<const std::byte>> parts;
  std::shared_ptr<const void> keep_alive;
};

// Filled back to back; exactly as many bytes as the peer sends. Owned by the caller until finished.
struct RecvOp {
  int peer = 0;
  std::vector<std::span<std::byte>> parts;
};

// Bytes count as they move, messages (one for each SendOp and RecvOp) when they are complete.
struct PeerCounters {
  uint64_t bytes_sent = 0;
  uint64_t bytes_received = 0;
  uint64_t messages_sent = 0;
  uint64_t messages_received = 0;
};

class Communicator {
 public:
  using Ticket = uint64_t;
  using Clock = std::chrono::steady_clock;

  virtual ~Communicator() = default;

  // While it is being built: what the epoch's first member gives all to have in common. Any thread.
  // Nothing where the transport needs none.
  virtual void Meet(const std::string& token) {}

  // Starts the transfers of one step and returns at once. To one peer, transfers happen in the
  // order of the posts; at most one send and one receive per peer and post. Sizes are agreed before
  // anything is posted: a mismatch is INTERNAL and ends the communicator, and so is a post that
  // breaks these rules. Returns the abort reason after an error or Abort.
  virtual absl::StatusOr<Ticket> Post(const TransferTag& tag, std::span<const SendOp> sends,
                                      std::span<const RecvOp> recvs) = 0;

  // Orders later work of this thread after the ticket. CPU: waits until its transfers are complete.
  // DEADLINE_EXCEEDED ends the communicator; the abort reason after an error or Abort.
  virtual absl::Status Then(Ticket ticket, Clock::time_point deadline) = 0;

  // Waits until everything posted is complete or failed. Statuses as Then.
  virtual absl::Status Finish(Clock::time_point deadline) = 0;

  // Ends the communicator: every pending and later call returns `reason` (not OK). Any thread;
  // returns at once. When Post, Then or Finish has returned an error, nothing is written to any
  // buffer of any post any more; bytes to be sent live as long as their keep_alive.
  virtual void Abort(absl::Status reason) = 0;

  // Bytes and messages so far, by member. Any thread.
  virtual std::vector<PeerCounters> counters() const = 0;
};

}  // namespace ringserve
