// One rank of one job: what is asked, and the memory for it. Bytes only: LibTorch's views of them
// are made by the engine. Shared by the call that fills and drains it, the engine, the memory while
// bytes are on their way in or out, and on the host every slice of its rows that the transport
// still holds.
#pragma once

#include <cstddef>
#include <utility>

#include "absl/status/status.h"
#include "worker/assignment.h"
#include "worker/tensor_memory.h"

namespace ringserve {

struct RankJob {
  explicit RankJob(RankAssignment assignment) : assignment(std::move(assignment)) {}

  // All that `memory` may say.
  absl::Status Allocate(TensorMemory& memory);

  // Where the bytes of this rank's shard of `tensor`, an upload or a result or LSE, begin: an
  // address of the memory's own.
  std::byte* Data(v1::TensorId tensor) const;

  RankAssignment assignment;
  TensorBuffer q;
  TensorBuffer kv;  // K's dense bytes, then V's
  TensorBuffer bias;
  TensorBuffer slopes;
  TensorBuffer sinks;
  TensorBuffer out;
  TensorBuffer lse;
  // Backward.
  TensorBuffer d_out;
  TensorBuffer d_lse;
  TensorBuffer d_q;
  TensorBuffer d_kv;  // as kv
  TensorBuffer d_sinks;

 private:
  const TensorBuffer* BufferOf(v1::TensorId tensor) const;
  TensorBuffer* BufferOf(v1::TensorId tensor);
};

}  // namespace ringserve
