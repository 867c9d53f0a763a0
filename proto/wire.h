// Chunk messages as raw ByteBuffers: a small header slice in front of data slices that are
// referenced in place. AttendRequest, AttendResponse, ShardRequest and ShardResponse all carry
// `repeated Chunk chunks = 2`, so one encoding serves every road, and a proxy forwards slices
// without touching their bytes.
//
// Anything may come from a stranger: parsing never trusts a length. Thread compatible.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/slice.h>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "ringserve/v1/tensor.pb.h"

namespace ringserve {

// Bytes [offset, offset + size) of one tensor, in one or more reference-counted slices.
struct DataChunk {
  v1::TensorId tensor = v1::TENSOR_ID_UNSPECIFIED;
  uint64_t offset = 0;
  uint64_t size = 0;                // sum of the slices' sizes
  std::vector<grpc::Slice> slices;  // references into the message that was parsed

  // The part [begin, begin + length) of this chunk, sharing the bytes. begin + length <= size.
  DataChunk Sub(uint64_t begin, uint64_t length) const;

  // Copies all `size` bytes to `destination`, which has room for them.
  void CopyTo(std::byte* destination) const;
};

// True iff the message carries field 2 (`chunks`) and nothing else decides what it is: its first
// tag is field 2's. Messages without chunks are parsed as protobuf messages (ParseProto).
bool CarriesChunks(const grpc::ByteBuffer& message);

// INVALID_ARGUMENT: not a well-formed message, one that carries a known field beside `chunks`, more
// than kMaxMessageBytes of data or kMaxMessageChunks chunks. Fields of unknown number are skipped,
// as protobuf does (groups are refused). Chunks share the message's bytes; one of size 0 has no
// slices.
absl::StatusOr<std::vector<DataChunk>> ParseChunks(const grpc::ByteBuffer& message);

// One message of these chunks, within the limits that ParseChunks sets. Slices are referenced; only
// those too small to be worth it (256 bytes) are copied.
grpc::ByteBuffer EncodeChunks(std::span<const DataChunk> chunks);

// A chunk over caller-owned bytes, which stay as they are until `release(owner)` is called, on any
// thread, when the last reference is gone. `size` > 0.
DataChunk BorrowedChunk(v1::TensorId tensor, uint64_t offset, const std::byte* data, uint64_t size,
                        void (*release)(void* owner), void* owner);

// Protobuf messages through the raw methods. INVALID_ARGUMENT where `message` is not a T.
template <typename Message>
absl::StatusOr<Message> ParseProto(const grpc::ByteBuffer& message);
template <typename Message>
grpc::ByteBuffer EncodeProto(const Message& message);

}  // namespace ringserve

#include "proto/wire_inl.h"
