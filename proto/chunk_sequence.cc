#include "proto/chunk_sequence.h"

#include <algorithm>
#include <cassert>
#include <iterator>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/tensor_shape.h"

namespace ringserve {

void ChunkSequence::Expect(v1::TensorId tensor, uint64_t bytes) { ExpectBlocks(tensor, {bytes}); }

void ChunkSequence::ExpectBlocks(v1::TensorId tensor, const std::vector<uint64_t>& blocks) {
  Progress progress;
  uint64_t end = 0;
  for (const uint64_t bytes : blocks) {
    assert(bytes > 0);
    progress.blocks.push_back({end, end + bytes});
    end += bytes;
  }
  const bool added = tensors_.emplace(tensor, std::move(progress)).second;
  assert(added);
  static_cast<void>(added);
  missing_ += end;
}

absl::Status ChunkSequence::Accept(v1::TensorId tensor, uint64_t offset, uint64_t size) {
  const auto found = tensors_.find(tensor);
  if (found == tensors_.end()) {
    return absl::InvalidArgumentError(absl::StrCat("chunks.tensor is ", TensorName(tensor),
                                                   ": not a tensor of this request's upload"));
  }
  Progress& progress = found->second;
  const auto wrong = [&](const auto&... what) {
    return absl::InvalidArgumentError(
        absl::StrCat("chunk of ", TensorName(tensor), " at offset ", offset, ": ", what...));
  };
  if (size == 0) return wrong("chunks.data is empty");
  // Past the end of all it is the last block that says what is expected.
  auto block = std::partition_point(progress.blocks.begin(), std::prev(progress.blocks.end()),
                                    [&](const Block& before) { return before.end <= offset; });
  if (offset != block->next) {
    return wrong("expected offset ", block->next,
                 offset > block->next ? " (a gap)" : " (an overlap)");
  }
  if (size > progress.bytes() - offset) {
    return wrong(size, " bytes go past the tensor's end at ", progress.bytes(), " bytes");
  }
  for (uint64_t begin = offset, end = offset + size; begin < end; ++block) {
    if (block->next != begin) return wrong("expected offset ", block->next, " (an overlap)");
    begin = block->next = std::min(end, block->end);
  }
  progress.received += size;
  missing_ -= size;
  return absl::OkStatus();
}

absl::Status ChunkSequence::CheckComplete() const {
  for (const auto& [tensor, progress] : tensors_) {
    const uint64_t bytes = progress.bytes();
    if (progress.received == bytes) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("upload of ", TensorName(tensor), " ended after ", progress.received, " of ",
                     bytes, " bytes: ", bytes - progress.received, " are missing"));
  }
  return absl::OkStatus();
}

void ChunkCoverage::Expect(v1::TensorId tensor, uint64_t bytes) {
  assert(bytes > 0);
  const bool added = tensors_.emplace(tensor, Coverage{bytes, {}}).second;
  assert(added);
  static_cast<void>(added);
  missing_ += bytes;
}

absl::Status ChunkCoverage::Accept(v1::TensorId tensor, uint64_t offset, uint64_t size) {
  const auto found = tensors_.find(tensor);
  if (found == tensors_.end()) {
    return absl::InternalError(
        absl::StrCat("answer holds a chunk of ", TensorName(tensor), ": not asked for"));
  }
  Coverage& coverage = found->second;
  const auto wrong = [&](const auto&... what) {
    return absl::InternalError(absl::StrCat("answer's chunk of ", TensorName(tensor), " at offset ",
                                            offset, " with ", size, " bytes ", what...));
  };
  if (size == 0) return wrong("is empty");
  if (offset > coverage.bytes || size > coverage.bytes - offset) {
    return wrong("goes past the tensor's end at ", coverage.bytes);
  }
  uint64_t begin = offset;
  uint64_t end = offset + size;
  auto next = coverage.ranges.lower_bound(begin);
  if (next != coverage.ranges.end() && next->first < end)
    return wrong("repeats bytes from ", next->first);
  if (next != coverage.ranges.begin()) {
    const auto previous = std::prev(next);
    if (previous->second > begin) return wrong("repeats bytes up to ", previous->second);
    if (previous->second == begin) {
      begin = previous->first;
      coverage.ranges.erase(previous);
    }
  }
  if (next != coverage.ranges.end() && next->first == end) {
    end = next->second;
    coverage.ranges.erase(next);
  }
  coverage.ranges.emplace(begin, end);
  missing_ -= size;
  return absl::OkStatus();
}

}  // namespace ringserve
