// What NcclCommunicator asks of NCCL and of the CUDA runtime, in so few calls that a test can stand
// in for them. None of them waits for another member: what takes long is begun, and Settled tells
// when it is through.
//
// Statuses are UNAVAILABLE where NCCL blames another member or the network, else INTERNAL.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace ringserve {

// One transfer of a group, more than 0 bytes.
struct NcclSend {
  int peer = 0;
  std::span<const std::byte> bytes;
};
struct NcclRecv {
  int peer = 0;
  std::span<std::byte> bytes;
};

// One member's end of a communicator, with a stream of its own. Not thread safe. Ends by Abort, and
// only then.
class NcclLink {
 public:
  using Event = uint64_t;

  virtual ~NcclLink() = default;

  // True: what was begun last (the communicator itself, a group) is through on the host, and the
  // next may begin. A group may want its peers for that.
  virtual absl::StatusOr<bool> Settled() = 0;

  // Begins a group: all its transfers at once, after what the stream has to do before. To and from
  // one peer transfers meet in the order of the groups; nothing but the order tells them apart.
  virtual absl::Status Launch(const std::vector<NcclSend>& sends,
                              const std::vector<NcclRecv>& recvs) = 0;

  // Events: this stream, or the one that the calling thread computes on, has come so far.
  virtual absl::StatusOr<Event> Mark() = 0;
  virtual absl::StatusOr<Event> MarkComputing() = 0;

  // What this stream, or the computing one, is told from now on happens after the event.
  virtual absl::Status Follow(Event event) = 0;
  virtual absl::Status ComputingFollows(Event event) = 0;

  virtual absl::StatusOr<bool> Reached(Event event) = 0;
  virtual void Forget(Event event) = 0;

  // Memory of the device, taken, written and given back in the order of the stream.
  virtual absl::StatusOr<std::byte*> Take(size_t bytes) = 0;
  virtual absl::Status Copy(std::byte* to, const std::byte* from, size_t bytes) = 0;
  virtual absl::Status Give(std::byte* memory) = 0;

  // Ends the communicator, whatever it is at. When this has returned, the stream is empty and
  // nothing is read or written any more; may take long. Nothing is called after it.
  virtual void Abort() = 0;
};

// Outlives its links. Thread safe.
class NcclLibrary {
 public:
  virtual ~NcclLibrary() = default;

  // What the members of one communicator must have in common. The caller is one of them.
  virtual absl::StatusOr<std::string> MakeUniqueId() = 0;

  // Begins to connect: Settled tells when all are there. INVALID_ARGUMENT: not a unique id.
  virtual absl::StatusOr<std::unique_ptr<NcclLink>> Connect(const std::string& unique_id,
                                                            int members, int self) = 0;
};

}  // namespace ringserve
