// Chunk messages, arbitrary bytes in arbitrary slices, against protobuf's own parser: what
// ParseChunks accepts, protobuf understands in the same way on every road; what it refuses and
// protobuf accepts is refused for a reason that wire.h gives.
#include <google/protobuf/unknown_field_set.h>

#include "proto/chunk_sequence.h"
#include "proto/protocol.h"
#include "proto/wire.h"
#include "ringserve/v1/attention.pb.h"
#include "ringserve/v1/shard.pb.h"
#include "tests/fuzz/target.h"

namespace ringserve::fuzz {
namespace {

using google::protobuf::UnknownField;
using google::protobuf::UnknownFieldSet;

std::string DataOf(const DataChunk& chunk) {
  uint64_t in_slices = 0;
  for (const grpc::Slice& slice : chunk.slices) in_slices += slice.size();
  FUZZ_EXPECT(in_slices == chunk.size);
  std::string data(chunk.size, '\0');
  chunk.CopyTo(reinterpret_cast<std::byte*>(data.data()));
  return data;
}

template <typename Message>
void ExpectSame(const std::vector<DataChunk>& chunks, const Message& message) {
  FUZZ_EXPECT(static_cast<int>(chunks.size()) == message.chunks_size());
  for (int i = 0; i < message.chunks_size(); ++i) {
    FUZZ_EXPECT(chunks[i].tensor == message.chunks(i).tensor());
    FUZZ_EXPECT(chunks[i].offset == message.chunks(i).offset());
    FUZZ_EXPECT(DataOf(chunks[i]) == message.chunks(i).data());
  }
}

template <typename Message>
void ExpectParsedAs(const std::vector<DataChunk>& chunks, const std::string& bytes) {
  Message message;
  FUZZ_EXPECT(message.ParseFromString(bytes));
  ExpectSame(chunks, message);
}

bool HoldsGroup(const UnknownFieldSet& fields) {
  for (int i = 0; i < fields.field_count(); ++i) {
    if (fields.field(i).type() == UnknownField::TYPE_GROUP) return true;
  }
  return false;
}

// ParseChunks may refuse what protobuf parsed as `message`.
bool MayBeRefused(const v1::AttendRequest& message) {
  if (message.has_header()) return true;
  const UnknownFieldSet& unknown = message.GetReflection()->GetUnknownFields(message);
  for (int i = 0; i < unknown.field_count(); ++i) {
    const int number = unknown.field(i).number();
    if (number == 1 || number == 3 || number == 4) return true;
  }
  if (HoldsGroup(unknown)) return true;
  uint64_t bytes = 0;
  for (const v1::Chunk& chunk : message.chunks()) {
    if (HoldsGroup(chunk.GetReflection()->GetUnknownFields(chunk))) return true;
    bytes += chunk.data().size();
  }
  return bytes > kMaxMessageBytes ||
         static_cast<uint64_t>(message.chunks_size()) > kMaxMessageChunks;
}

void CheckRefused(const std::string& bytes) {
  v1::AttendRequest message;
  if (!message.ParseFromString(bytes) || MayBeRefused(message)) return;
  // Protobuf ignores the bits of a tag past 32; encoded anew they are gone.
  const absl::StatusOr<std::vector<DataChunk>> chunks =
      ParseChunks(Sliced(message.SerializeAsString(), 0));
  FUZZ_EXPECT(chunks.ok());
  ExpectSame(*chunks, message);
}

void CheckParts(const std::vector<DataChunk>& chunks, uint8_t seed) {
  for (const DataChunk& chunk : chunks) {
    const uint64_t begin = chunk.size * (seed & 15) / 16;
    const uint64_t length = (chunk.size - begin) * (seed >> 4) / 15;
    const DataChunk part = chunk.Sub(begin, length);
    FUZZ_EXPECT(part.offset == chunk.offset + begin && part.size == length);
    FUZZ_EXPECT(DataOf(part) == DataOf(chunk).substr(begin, length));
  }
}

// The books never count a byte that does not exist, nor one twice.
void CheckBooks(const std::vector<DataChunk>& chunks) {
  constexpr uint64_t kBytes = 64;
  ChunkSequence upload;
  ChunkCoverage answer;
  upload.Expect(v1::TENSOR_ID_Q, kBytes);
  answer.Expect(v1::TENSOR_ID_Q, kBytes);
  uint64_t uploaded = 0, answered = 0;
  for (const DataChunk& chunk : chunks) {
    if (upload.Accept(chunk.tensor, chunk.offset, chunk.size).ok()) {
      FUZZ_EXPECT(chunk.offset == uploaded);
      uploaded += chunk.size;
    }
    if (answer.Accept(chunk.tensor, chunk.offset, chunk.size).ok()) answered += chunk.size;
    FUZZ_EXPECT(uploaded <= kBytes && answered <= kBytes);
    FUZZ_EXPECT(upload.complete() == (uploaded == kBytes));
    FUZZ_EXPECT(answer.complete() == (answered == kBytes));
    FUZZ_EXPECT(upload.CheckComplete().ok() == upload.complete());
  }
}

// The first byte says how the rest is sliced.
void Check(const uint8_t* data, size_t size) {
  if (size == 0) return;
  const uint8_t seed = data[0];
  const std::string bytes(reinterpret_cast<const char*>(data + 1), size - 1);
  const grpc::ByteBuffer message = Sliced(bytes, seed);
  const absl::StatusOr<std::vector<DataChunk>> chunks = ParseChunks(message);
  FUZZ_EXPECT(chunks.ok() == ParseChunks(Sliced(bytes, 0)).ok());
  if (!chunks.ok()) {
    FUZZ_EXPECT(chunks.status().code() == absl::StatusCode::kInvalidArgument);
    CheckRefused(bytes);
    return;
  }
  FUZZ_EXPECT(!CarriesChunks(message) || !chunks->empty());
  ExpectParsedAs<v1::AttendRequest>(*chunks, bytes);
  ExpectParsedAs<v1::ShardResponse>(*chunks, bytes);
  const std::string encoded = BytesOf(EncodeChunks(*chunks));
  ExpectParsedAs<v1::AttendResponse>(*chunks, encoded);
  ExpectParsedAs<v1::ShardRequest>(*chunks, encoded);
  CheckParts(*chunks, seed);
  CheckBooks(*chunks);
}

}  // namespace
}  // namespace ringserve::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  ringserve::fuzz::Check(data, size);
  return 0;
}
