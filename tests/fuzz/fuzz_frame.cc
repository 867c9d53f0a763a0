// Frames between workers, arbitrary bytes in arbitrary slices, against protobuf's own parser.
#include <memory>
#include <span>

#include "proto/protocol.h"
#include "ringserve/v1/shard.pb.h"
#include "tests/fuzz/target.h"
#include "worker/comm/frame.h"

namespace ringserve::fuzz {
namespace {

// The first byte says how the rest is sliced.
void Check(const uint8_t* data, size_t size) {
  if (size == 0) return;
  const std::string bytes(reinterpret_cast<const char*>(data + 1), size - 1);
  grpc::ByteBuffer message = Sliced(bytes, data[0]);
  FrameReader reader(message);
  const absl::StatusOr<FrameHeader> header = reader.ReadHeader();
  if (!header.ok()) {
    FUZZ_EXPECT(header.status().code() == absl::StatusCode::kInvalidArgument);
    return;
  }
  v1::Frame frame;
  FUZZ_EXPECT(frame.ParseFromString(bytes));
  FUZZ_EXPECT(header->tag.job == frame.job());
  FUZZ_EXPECT(header->tag.step == frame.step());
  FUZZ_EXPECT(header->offset == frame.offset() && header->size == frame.size());
  FUZZ_EXPECT(header->bytes == frame.data().size() && header->bytes <= kMaxMessageBytes);
  FUZZ_EXPECT(header->bytes <= header->size && header->offset <= header->size - header->bytes);

  std::string read(header->bytes, '\0');
  const std::span<std::byte> all = std::as_writable_bytes(std::span(read));
  const size_t half = all.size() / 2;
  FUZZ_EXPECT(reader.Read(all.first(half)) && reader.Read(all.subspan(half)));
  FUZZ_EXPECT(read == frame.data());
  std::byte more[1];
  FUZZ_EXPECT(!reader.Read(more));

  const auto owner = std::make_shared<std::string>(read);
  const std::span<const std::byte> pieces[] = {std::as_bytes(std::span(*owner)).first(half),
                                               std::as_bytes(std::span(*owner)).subspan(half)};
  v1::Frame again;
  FUZZ_EXPECT(again.ParseFromString(BytesOf(EncodeFrame(*header, pieces, owner))));
  FUZZ_EXPECT(again.SerializeAsString() == frame.SerializeAsString());
}

}  // namespace
}  // namespace ringserve::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  ringserve::fuzz::Check(data, size);
  return 0;
}
