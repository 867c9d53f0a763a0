// What staging asks of a device: memory there, pinned memory here, and copies between the two, in
// so few calls that a test can stand in for it. A copy is begun, and tells nobody when it is over:
// a mark behind it does. Those of one way happen in the order in which they were begun.
//
// Thread safe. Any status but OK and RESOURCE_EXHAUSTED means that the device has failed for good.
#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace ringserve {

class DeviceCopies {
 public:
  enum Way { kIn, kOut };  // to the device, from the device
  using Mark = uint64_t;

  virtual ~DeviceCopies() = default;

  // Device memory, more than 0 bytes. Zero-filled before any later copy in, and when a later mark
  // of that way is reached. RESOURCE_EXHAUSTED: there is not so much.
  virtual absl::StatusOr<std::byte*> TakeDevice(uint64_t bytes) = 0;
  // Nothing reads or writes it any more.
  virtual void GiveDevice(std::byte* memory) = 0;

  // Host memory that the device reads and writes by itself, while others do something else.
  // RESOURCE_EXHAUSTED: the system refuses.
  virtual absl::StatusOr<std::byte*> TakePinned(uint64_t bytes) = 0;
  virtual void GivePinned(std::byte* memory) = 0;

  // Begins a copy of more than 0 bytes between device and host. The host's memory may be not
  // pinned: the call then may wait for the copy.
  virtual absl::Status Begin(Way way, std::byte* to, const std::byte* from, uint64_t bytes) = 0;

  // Reached when every copy of this way that was begun before is over.
  virtual absl::StatusOr<Mark> Place(Way way) = 0;
  virtual absl::StatusOr<bool> Reached(Way way, Mark mark) = 0;
};

}  // namespace ringserve
