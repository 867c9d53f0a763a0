// v1.Frame by hand, so that a transfer's bytes are referenced on the way out and copied once on the
// way in. Frames come from other processes: parsing never trusts a length.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include <google/protobuf/io/coded_stream.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/proto_buffer_reader.h>

#include "absl/status/statusor.h"
#include "worker/comm/communicator.h"

namespace ringserve {

struct FrameHeader {
  TransferTag tag;
  uint64_t offset = 0;  // in the transfer
  uint64_t size = 0;    // of the whole transfer
  uint64_t bytes = 0;   // of data in this frame
};

// A frame whose data is `data`, back to back: header.bytes in all. The bytes are referenced, and
// `owner` is held, until gRPC has let go of them; small ones are copied.
grpc::ByteBuffer EncodeFrame(const FrameHeader& header,
                             std::span<const std::span<const std::byte>> data,
                             const std::shared_ptr<const void>& owner);

// Reads one frame. The message stays as it is for as long as the reader lives.
class FrameReader {
 public:
  explicit FrameReader(grpc::ByteBuffer& message);

  // Once, first. INVALID_ARGUMENT: not a frame, or one with more than kMaxMessageBytes of data, or
  // whose data does not lie inside the transfer.
  absl::StatusOr<FrameHeader> ReadHeader();

  // Copies the next destination.size() bytes of data, which must be there. False: they cannot be
  // read.
  bool Read(std::span<std::byte> destination);

 private:
  const uint64_t message_bytes_;
  grpc::ProtoBufferReader pieces_;
  google::protobuf::io::CodedInputStream input_;
};

}  // namespace ringserve
