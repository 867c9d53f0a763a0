#include "proto/chunk_sequence.h"

#include <cassert>
#include <iterator>

#include "absl/strings/str_cat.h"
#include "proto/tensor_shape.h"

namespace ringserve {

void ChunkSequence::Expect(v1::TensorId tensor, uint64_t bytes) {
  assert(bytes > 0);
  const bool added = tensors_.emplace(tensor, Progress{0, bytes}).second;
  assert(added);
  static_cast<void>(added);
  missing_ += bytes;
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
  if (offset != progress.received) {
    return wrong("expected offset ", progress.received,
                 offset > progress.received ? " (a gap)" : " (an overlap)");
  }
  if (size > progress.bytes - progress.received) {
    return wrong(size, " bytes go past the tensor's end at ", progress.bytes, " bytes");
  }
  progress.received += size;
  missing_ -= size;
  return absl::OkStatus();
}

absl::Status ChunkSequence::CheckComplete() const {
  for (const auto& [tensor, progress] : tensors_) {
    if (progress.received == progress.bytes) continue;
    return absl::InvalidArgumentError(absl::StrCat(
        "upload of ", TensorName(tensor), " ended after ", progress.received, " of ",
        progress.bytes, " bytes: ", progress.bytes - progress.received, " are missing"));
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
