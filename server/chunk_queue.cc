#include "server/chunk_queue.h"

#include <algorithm>
#include <cassert>
#include <utility>

#include "proto/protocol.h"

namespace ringserve {
namespace {

// Pieces up to this size are copied: a reference to each costs more.
constexpr uint64_t kSmallPiece = 256;

}  // namespace

void ChunkQueue::Push(v1::TensorId tensor, uint64_t offset, uint64_t size, ChunkReader& source) {
  assert(size > 0);
  if (chunks_.empty() || chunks_.back().tensor != tensor ||
      chunks_.back().offset + chunks_.back().size != offset) {
    Seal();
    chunks_.push_back({tensor, offset, 0, {}});
  }
  source.Take(size, [this](const grpc::Slice& slice, uint64_t begin, uint64_t end) {
    if (end - begin <= kSmallPiece) {
      small_.append(reinterpret_cast<const char*>(slice.begin()) + begin, end - begin);
    } else {
      Seal();
      chunks_.back().slices.push_back(slice.sub(begin, end));
    }
  });
  chunks_.back().size += size;
  data_bytes_ += size;
}

void ChunkQueue::Seal() {
  if (small_.empty()) return;
  chunks_.back().slices.emplace_back(small_.data(), small_.size());
  small_.clear();
}

OutgoingMessage ChunkQueue::Pop() {
  assert(!empty());
  Seal();
  OutgoingMessage message;
  std::vector<DataChunk> taken;
  while (!chunks_.empty() && message.data_bytes < kChunkBytes && taken.size() < kMaxMessageChunks) {
    const uint64_t room = kChunkBytes - message.data_bytes;
    DataChunk& next = chunks_.front();
    if (next.size > room) {
      taken.push_back(next.Sub(0, room));
      next = next.Sub(room, next.size - room);
      message.data_bytes += room;
    } else {
      message.data_bytes += next.size;
      taken.push_back(std::move(next));
      chunks_.pop_front();
    }
  }
  data_bytes_ -= message.data_bytes;
  message.buffer = EncodeChunks(taken);
  return message;
}

void ChunkQueue::Clear() {
  chunks_.clear();
  small_.clear();
  data_bytes_ = 0;
}

}  // namespace ringserve
