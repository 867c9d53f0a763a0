// Bookkeeping of tensor bytes that arrive in chunks: is each byte there exactly once?
// No bytes are held. Not thread safe.
#pragma once

#include <cstdint>
#include <map>

#include "absl/status/status.h"
#include "ringserve/v1/tensor.pb.h"

namespace ringserve {

// An upload: each expected tensor's offsets ascend without gap or overlap.
class ChunkSequence {
 public:
  // `bytes` > 0; once per tensor.
  void Expect(v1::TensorId tensor, uint64_t bytes);

  // INVALID_ARGUMENT, naming the tensor and the offset that was expected: a tensor that was not
  // announced, an empty chunk, a gap, an overlap, bytes past the end.
  absl::Status Accept(v1::TensorId tensor, uint64_t offset, uint64_t size);

  bool complete() const { return missing_ == 0; }

  // INVALID_ARGUMENT, naming a tensor that is not complete and how many bytes it lacks.
  absl::Status CheckComplete() const;

 private:
  struct Progress {
    uint64_t received = 0;
    uint64_t bytes = 0;
  };
  std::map<v1::TensorId, Progress> tensors_;
  uint64_t missing_ = 0;
};

// A download: chunks in any order, each byte once.
class ChunkCoverage {
 public:
  void Expect(v1::TensorId tensor, uint64_t bytes);

  // INTERNAL (the server broke its promise): an unknown tensor, an empty chunk, a byte twice, past
  // the end.
  absl::Status Accept(v1::TensorId tensor, uint64_t offset, uint64_t size);

  bool complete() const { return missing_ == 0; }

 private:
  struct Coverage {
    uint64_t bytes = 0;
    std::map<uint64_t, uint64_t> ranges;  // begin -> end, disjoint, never adjacent
  };
  std::map<v1::TensorId, Coverage> tensors_;
  uint64_t missing_ = 0;
};

}  // namespace ringserve
