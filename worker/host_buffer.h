// Tensor memory on the host: page aligned, owned by one object, given back to the system when that
// is destroyed, so that a finished request leaves nothing behind in an allocator.
#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/status/statusor.h"

namespace ringserve {

class HostBuffer {
 public:
  HostBuffer() = default;  // no bytes
  HostBuffer(HostBuffer&& other) noexcept;
  HostBuffer& operator=(HostBuffer&& other) noexcept;
  ~HostBuffer();

  // Zero-filled. RESOURCE_EXHAUSTED: the system refuses.
  static absl::StatusOr<HostBuffer> Allocate(uint64_t bytes);

  std::byte* data() const { return data_; }  // nullptr iff size is 0
  uint64_t size() const { return size_; }

 private:
  std::byte* data_ = nullptr;
  uint64_t size_ = 0;
};

}  // namespace ringserve
