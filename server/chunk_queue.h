// Chunks on their way through the coordinator: cut from messages that came in, put together anew as
// messages that go out. Bytes are referenced where they lie; only small pieces are copied. Not
// thread safe.
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <string>
#include <vector>

#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/slice.h>

#include "proto/wire.h"

namespace ringserve {

// Reads through the bytes of a chunk, once.
class ChunkReader {
 public:
  explicit ChunkReader(const DataChunk& chunk) : slices_(chunk.slices) {}

  // Calls visit(slice, begin, end) for the pieces that make up the next `size` bytes. There are so
  // many.
  template <typename Visit>
  void Take(uint64_t size, const Visit& visit) {
    while (size > 0) {
      const grpc::Slice& slice = slices_[index_];
      const uint64_t length = std::min<uint64_t>(size, slice.size() - begin_);
      visit(slice, begin_, begin_ + length);
      size -= length;
      begin_ += length;
      if (begin_ < slice.size()) continue;
      begin_ = 0;
      ++index_;
    }
  }

 private:
  const std::vector<grpc::Slice>& slices_;
  size_t index_ = 0;
  uint64_t begin_ = 0;
};

struct OutgoingMessage {
  grpc::ByteBuffer buffer;
  uint64_t data_bytes = 0;
};

class ChunkQueue {
 public:
  // Appends the next `size` > 0 bytes of `source` as bytes [offset, offset + size) of `tensor`.
  // What continues the chunk before it becomes part of it.
  void Push(v1::TensorId tensor, uint64_t offset, uint64_t size, ChunkReader& source);

  bool empty() const { return chunks_.empty(); }
  uint64_t data_bytes() const { return data_bytes_; }

  // The next message: up to kChunkBytes of data and kMaxMessageChunks chunks. Not empty.
  OutgoingMessage Pop();

  void Clear();

 private:
  void Seal();

  std::deque<DataChunk> chunks_;
  std::string small_;  // end of the last chunk: pieces too small to be referenced
  uint64_t data_bytes_ = 0;
};

}  // namespace ringserve
