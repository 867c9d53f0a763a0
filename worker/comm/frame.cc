#include "worker/comm/frame.h"

#include <vector>

#include <grpcpp/support/slice.h>

#include "absl/strings/str_cat.h"
#include "proto/protocol.h"

namespace ringserve {
namespace {

using google::protobuf::io::CodedOutputStream;

constexpr uint32_t kJobTag = 1 << 3;
constexpr uint32_t kStepTag = 2 << 3;
constexpr uint32_t kOffsetTag = 3 << 3;
constexpr uint32_t kSizeTag = 4 << 3;
constexpr uint32_t kDataTag = 5 << 3 | 2;

constexpr int kLongestHeader = 5 * (1 + 10);

// Up to here a copy costs less than a reference.
constexpr size_t kCopiedBytes = 256;

using Owner = std::shared_ptr<const void>;

grpc::Slice Borrowed(std::span<const std::byte> bytes, const Owner& owner) {
  // gRPC's slices are not const, but it never writes into one that it sends.
  auto* data = const_cast<std::byte*>(bytes.data());
  if (bytes.size() <= kCopiedBytes) return grpc::Slice(data, bytes.size());
  return grpc::Slice(
      data, bytes.size(), [](void* held) { delete static_cast<Owner*>(held); }, new Owner(owner));
}

}  // namespace

grpc::ByteBuffer EncodeFrame(const FrameHeader& header,
                             std::span<const std::span<const std::byte>> data, const Owner& owner) {
  uint8_t head[kLongestHeader];
  uint8_t* end = head;
  const auto put = [&](uint32_t tag, uint64_t value) {
    end = CodedOutputStream::WriteVarint32ToArray(tag, end);
    end = CodedOutputStream::WriteVarint64ToArray(value, end);
  };
  put(kJobTag, header.tag.job);
  put(kStepTag, header.tag.step);
  put(kOffsetTag, header.offset);
  put(kSizeTag, header.size);
  if (header.bytes > 0) put(kDataTag, header.bytes);
  std::vector<grpc::Slice> slices;
  slices.reserve(1 + data.size());
  slices.emplace_back(head, end - head);
  for (const std::span<const std::byte>& bytes : data) slices.push_back(Borrowed(bytes, owner));
  return grpc::ByteBuffer(slices.data(), slices.size());
}

FrameReader::FrameReader(grpc::ByteBuffer& message)
    : message_bytes_(message.Length()), pieces_(&message), input_(&pieces_) {}

absl::StatusOr<FrameHeader> FrameReader::ReadHeader() {
  const auto malformed = [&](const auto&... what) {
    return absl::InvalidArgumentError(
        absl::StrCat("frame of ", message_bytes_, " bytes: ", what...));
  };
  FrameHeader header;
  while (header.bytes == 0) {
    const uint32_t tag = input_.ReadTag();
    if (tag == 0 && input_.ConsumedEntireMessage()) break;
    uint64_t value = 0;
    if (!input_.ReadVarint64(&value)) return malformed("cut off, or not of fields");
    switch (tag) {
      case kJobTag:
        header.tag.job = value;
        break;
      case kStepTag:
        header.tag.step = static_cast<uint32_t>(value);
        break;
      case kOffsetTag:
        header.offset = value;
        break;
      case kSizeTag:
        header.size = value;
        break;
      case kDataTag:
        if (value == 0) return malformed("empty data");
        header.bytes = value;
        break;
      default:
        return malformed("unexpected field ", tag >> 3);
    }
  }
  const uint64_t left = message_bytes_ - static_cast<uint64_t>(input_.CurrentPosition());
  if (header.bytes != left) return malformed(header.bytes, " bytes of data where ", left, " are");
  if (header.bytes > kMaxMessageBytes) {
    return malformed(header.bytes, " bytes of data: at most ", kMaxMessageBytes);
  }
  if (header.offset > header.size || header.bytes > header.size - header.offset ||
      (header.bytes == 0) != (header.size == 0)) {
    return malformed(header.bytes, " bytes at ", header.offset, " of a transfer of ", header.size);
  }
  return header;
}

bool FrameReader::Read(std::span<std::byte> destination) {
  return input_.ReadRaw(destination.data(), static_cast<int>(destination.size()));
}

}  // namespace ringserve
