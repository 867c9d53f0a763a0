// Bookkeeping of tensor bytes that arrive in chunks: is each byte there exactly once?
// No bytes are held. Not thread safe.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "absl/status/status.h"
#include "ringserve/v1/tensor.pb.h"

namespace ringserve {

// An upload: each expected tensor's offsets ascend without gap or overlap, or those of each of its
// blocks do.
class ChunkSequence {
 public:
  // `bytes` > 0; once per tensor.
  void Expect(v1::TensorId tensor, uint64_t bytes);

  // The same for a tensor of several blocks, one after the other, each of so many bytes > 0: they
  // may grow side by side, and a chunk may end one and begin the next.
  void ExpectBlocks(v1::TensorId tensor, const std::vector<uint64_t>& blocks);

  // INVALID_ARGUMENT, naming the tensor and the offset that was expected: a tensor that was not
  // announced, an empty chunk, a gap, an overlap, bytes past the end.
  absl::Status Accept(v1::TensorId tensor, uint64_t offset, uint64_t size);

  bool complete() const { return missing_ == 0; }

  // INVALID_ARGUMENT, naming a tensor that is not complete and how many bytes it lacks.
  absl::Status CheckComplete() const;

 private:
  struct Block {
    uint64_t next = 0;  // the offset that is expected; `end`: none
    uint64_t end = 0;
  };
  struct Progress {
    std::vector<Block> blocks;  // ascending, without a gap; not empty
    uint64_t received = 0;

    uint64_t bytes() const { return blocks.back().end; }
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
