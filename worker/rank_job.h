// One rank of one job: what is asked, and the memory for it. Bytes only: LibTorch's views of them
// are made by the engine. Shared by the call that fills and drains it, the engine, and every slice
// of its rows that the transport still holds.
#pragma once

#include <cstddef>
#include <utility>

#include "absl/status/status.h"
#include "worker/assignment.h"
#include "worker/host_buffer.h"

namespace ringserve {

struct RankJob {
  explicit RankJob(RankAssignment assignment) : assignment(std::move(assignment)) {}

  // RESOURCE_EXHAUSTED: the system refuses.
  absl::Status Allocate();

  // Where the bytes of this rank's shard of `tensor`, an upload or a result or LSE, begin.
  std::byte* Data(v1::TensorId tensor) const;

  RankAssignment assignment;
  HostBuffer q;
  HostBuffer kv;  // K's dense bytes, then V's
  HostBuffer bias;
  HostBuffer slopes;
  HostBuffer sinks;
  HostBuffer out;
  HostBuffer lse;
  // Backward.
  HostBuffer d_out;
  HostBuffer d_lse;
  HostBuffer d_q;
  HostBuffer d_kv;  // as kv
  HostBuffer d_sinks;

 private:
  const HostBuffer* BufferOf(v1::TensorId tensor) const;
  HostBuffer* BufferOf(v1::TensorId tensor);
};

}  // namespace ringserve
