// Chunk messages against protobuf's own encoder and parser.
#include "proto/wire.h"

#include <atomic>
#include <cstring>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "proto/protocol.h"
#include "ringserve/v1/attention.pb.h"
#include "ringserve/v1/shard.pb.h"
#include "tests/support/random.h"

namespace ringserve {
namespace {

using testing::AllOf;
using testing::HasSubstr;

// The message in slices of at most `most` bytes; 0: in random ones, empty ones among them.
grpc::ByteBuffer Sliced(const std::string& bytes, size_t most, test::Random& random) {
  std::vector<grpc::Slice> slices;
  for (size_t at = 0; at < bytes.size();) {
    const size_t size =
        std::min<size_t>(most != 0 ? most : random.Between(0, 40), bytes.size() - at);
    slices.emplace_back(bytes.data() + at, size);
    at += size;
  }
  if (most == 0) slices.emplace_back("", 0);
  return grpc::ByteBuffer(slices.data(), slices.size());
}

grpc::ByteBuffer Whole(const std::string& bytes) {
  const grpc::Slice slice(bytes);
  return grpc::ByteBuffer(&slice, 1);
}

std::string Bytes(const grpc::ByteBuffer& buffer) {
  std::vector<grpc::Slice> slices;
  EXPECT_TRUE(buffer.Dump(&slices).ok());
  std::string bytes;
  for (const grpc::Slice& slice : slices)
    bytes.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  return bytes;
}

std::string DataOf(const DataChunk& chunk) {
  std::string data(chunk.size, '\0');
  chunk.CopyTo(reinterpret_cast<std::byte*>(data.data()));
  return data;
}

std::string RandomBytes(test::Random& random, size_t size) {
  std::string bytes(size, '\0');
  for (char& byte : bytes) byte = static_cast<char>(random.Bits());
  return bytes;
}

v1::AttendRequest RandomChunks(test::Random& random) {
  v1::AttendRequest message;
  for (int64_t i = random.Between(1, 6); i > 0; --i) {
    v1::Chunk& chunk = *message.add_chunks();
    chunk.set_tensor(static_cast<v1::TensorId>(random.Pick<int64_t>({1, 2, 3, 14, 99, -1, 0})));
    chunk.set_offset(random.Pick<uint64_t>(
        {0, 1, 127, 128, 1u << 31, uint64_t{1} << 62, ~uint64_t{0}, random.Bits()}));
    chunk.set_data(RandomBytes(random, random.Pick<size_t>({0, 1, 127, 128, 255, 256, 257, 3000})));
  }
  return message;
}

void ExpectSame(const std::vector<DataChunk>& parsed, const v1::AttendRequest& message) {
  ASSERT_EQ(static_cast<int>(parsed.size()), message.chunks_size());
  for (int i = 0; i < message.chunks_size(); ++i) {
    EXPECT_EQ(parsed[i].tensor, message.chunks(i).tensor());
    EXPECT_EQ(parsed[i].offset, message.chunks(i).offset());
    ASSERT_EQ(parsed[i].size, message.chunks(i).data().size());
    EXPECT_EQ(DataOf(parsed[i]), message.chunks(i).data());
  }
}

// A field as it stands on the wire.
std::string Varint(uint64_t value) {
  std::string out;
  for (; value >= 0x80; value >>= 7) out += static_cast<char>(value | 0x80);
  return out + static_cast<char>(value);
}
std::string Field(uint32_t number, uint32_t wire_type, const std::string& content) {
  return Varint(number << 3 | wire_type) + content;
}
std::string Delimited(uint32_t number, const std::string& content) {
  return Field(number, 2, Varint(content.size()) + content);
}

TEST(Wire, ParsesWhatProtobufEncodesHoweverItIsSliced) {
  test::Random random(1);
  for (int round = 0; round < 200; ++round) {
    const v1::AttendRequest message = RandomChunks(random);
    const std::string bytes = message.SerializeAsString();
    for (const size_t most : {size_t{0}, size_t{1}, size_t{2}, size_t{7}, size_t{1} << 20}) {
      const grpc::ByteBuffer buffer = Sliced(bytes, most, random);
      EXPECT_TRUE(CarriesChunks(buffer));
      const absl::StatusOr<std::vector<DataChunk>> parsed = ParseChunks(buffer);
      ASSERT_TRUE(parsed.ok()) << parsed.status();
      ASSERT_NO_FATAL_FAILURE(ExpectSame(*parsed, message));
    }
  }
}

TEST(Wire, EncodesWhatProtobufParsesOnEveryRoad) {
  test::Random random(2);
  for (int round = 0; round < 200; ++round) {
    const v1::AttendRequest message = RandomChunks(random);
    std::vector<DataChunk> chunks;
    for (const v1::Chunk& chunk : message.chunks()) {
      DataChunk& added = chunks.emplace_back(DataChunk{chunk.tensor(), chunk.offset()});
      added.size = chunk.data().size();
      for (size_t at = 0; at < chunk.data().size();) {
        const size_t size = std::min<size_t>(random.Between(0, 900), chunk.data().size() - at);
        added.slices.emplace_back(chunk.data().data() + at, size);
        at += size;
      }
    }
    const std::string bytes = Bytes(EncodeChunks(chunks));
    const auto expect_parsed_as = [&](auto parsed) {
      ASSERT_TRUE(parsed.ParseFromString(bytes));
      ASSERT_EQ(parsed.chunks_size(), message.chunks_size());
      for (int i = 0; i < message.chunks_size(); ++i)
        EXPECT_EQ(parsed.chunks(i).SerializeAsString(), message.chunks(i).SerializeAsString());
    };
    expect_parsed_as(v1::AttendRequest());
    expect_parsed_as(v1::AttendResponse());
    expect_parsed_as(v1::ShardRequest());
    expect_parsed_as(v1::ShardResponse());
    const auto parsed = ParseChunks(EncodeChunks(chunks));
    ASSERT_TRUE(parsed.ok()) << parsed.status();
    ExpectSame(*parsed, message);
  }
}

TEST(Wire, EncodesNoChunksAsAnEmptyMessage) {
  EXPECT_EQ(EncodeChunks({}).Length(), 0u);
  const auto parsed = ParseChunks(EncodeChunks({}));
  ASSERT_TRUE(parsed.ok());
  EXPECT_TRUE(parsed->empty());
  EXPECT_FALSE(CarriesChunks(EncodeChunks({})));
}

// Protobuf's rules for what a parser must put up with.
TEST(Wire, ReadsEveryEncodingThatProtobufAllows) {
  const std::string unknown = Field(15, 0, Varint(~uint64_t{0})) + Field(16, 1, "12345678") +
                              Delimited(17, "skipped") + Field(18, 5, "1234") +
                              Field((1 << 29) - 1, 0, Varint(3));
  const std::string chunks[] = {
      "",                                                                   // all defaults
      Delimited(3, "x") + Field(2, 0, Varint(5)) + Field(1, 0, Varint(3)),  // any order
      Field(1, 0, Varint(1)) + Field(1, 0, Varint(2)) + Delimited(3, "first") +
          Delimited(3, "last"),                 // the last one wins
      Delimited(3, "gone") + Delimited(3, ""),  // also when it is empty
      unknown + Delimited(3, "x") + unknown,    // unknown numbers are skipped
      Field(1, 5, "abcd") + Field(2, 2, Varint(2) + "ab") + Field(3, 0, Varint(9)),  // or types
      std::string("\x88") + std::string("\0", 1) + Varint(2),  // tag in two bytes
      Field(2, 0, std::string("\x85\x80\x80\x80\x80\x80\x80\x80\x80") + std::string("\0", 1)),
      Field(1, 0, Varint((uint64_t{7} << 32) | 3)),  // an enum is cut to 32 bits
      Field(1, 0, Varint(~uint64_t{0})),             // a negative one
      Field(3, 2, std::string("\x81\x80\x80\x80") + std::string("\0", 1) + "y"),  // a long length
  };
  std::string all = unknown;
  for (const std::string& chunk : chunks) all += Delimited(2, chunk) + unknown;
  all += Field(2, 0, Varint(1));  // `chunks` with another wire type is an unknown field
  v1::AttendRequest message;
  ASSERT_TRUE(message.ParseFromString(all));
  test::Random random(3);
  for (const size_t most : {size_t{0}, size_t{1}, size_t{3}, all.size()}) {
    const auto parsed = ParseChunks(Sliced(all, most, random));
    ASSERT_TRUE(parsed.ok()) << parsed.status();
    ASSERT_NO_FATAL_FAILURE(ExpectSame(*parsed, message));
  }
}

TEST(Wire, RefusesWhatIsMalformed) {
  const std::string endless(11, '\xFF');
  struct Malformed {
    std::string bytes;
    const char* says;
  };
  const Malformed cases[] = {
      {"\x12", "at byte 1: length is cut off"},
      {"\x80", "field tag is cut off"},
      {endless, "field tag is cut off or too long"},
      {std::string("\0\0", 2), "field tag 0 is no field's"},
      {"\x02\x01x", "field tag 2 is no field's"},
      {Delimited(2, "") + "\x12\x05" + "abcd", "a field of 5 bytes where 4 are left"},
      {"\x12" + Varint(uint64_t{1} << 32), "a field of 4294967296 bytes where 0 are left"},
      {"\x12" + endless, "length is cut off or too long"},
      {"\x12" + Varint(~uint64_t{0}), "length is cut off or too long"},
      // Lengths inside a chunk that reach past the chunk, though not past the message.
      {"\x12\x02" + Field(3, 2, Varint(3)) + "abc", "a field of 3 bytes where 0 are left"},
      {"\x12\x01" + Field(1, 0, Varint(3)), "chunks.tensor is cut off"},
      {"\x12\x01" + Field(2, 0, Varint(3)), "chunks.offset is cut off"},
      {"\x12\x02" + std::string("\x10\x80\x01"), "chunks.offset is cut off"},
      {Delimited(2, Field(2, 0, endless)), "chunks.offset is cut off"},
      {Delimited(2, Field(9, 1, "1234567")), "field 9 is cut off"},
      {Delimited(2, Field(9, 5, "123")), "field 9 is cut off"},
      {Delimited(2, Field(9, 0, "\xFF")), "field 9 is cut off"},
      {Delimited(2, Field(9, 2, "\x09")), "a field of 9 bytes where 0 are left"},
      // Groups, and types that there are none of.
      {Field(9, 3, Field(9, 4, "")), "field 9 has wire type 3"},
      {Delimited(2, Field(9, 4, "")), "field 9 has wire type 4"},
      {Field(2, 4, ""), "field 2 has wire type 4"},
      {Field(9, 6, ""), "field 9 has wire type 6"},
      {Field(9, 7, ""), "field 9 has wire type 7"},
      // Anything known beside chunks.
      {Delimited(2, "") + Delimited(1, ""), "field 1 in a message with chunks"},
      {Delimited(2, "") + Field(3, 0, Varint(1)), "field 3 in a message with chunks"},
      {Delimited(2, "") + Field(4, 0, Varint(1)), "field 4 in a message with chunks"},
      {Field(1, 0, Varint(0)) + Delimited(2, ""), "field 1 in a message with chunks"},
  };
  test::Random random(4);
  for (const Malformed& malformed : cases) {
    for (const size_t most : {size_t{1}, size_t{3}, malformed.bytes.size()}) {
      const absl::Status status = ParseChunks(Sliced(malformed.bytes, most, random)).status();
      EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << malformed.says;
      EXPECT_THAT(std::string(status.message()),
                  AllOf(HasSubstr("chunk message of "), HasSubstr(malformed.says)));
    }
  }
}

TEST(Wire, EveryPrefixOfAMessageIsRefusedOrAMessage) {
  test::Random random(5);
  const std::string bytes = RandomChunks(random).SerializeAsString();
  for (size_t size = 0; size < bytes.size(); size += 1 + size / 100) {
    const std::string prefix = bytes.substr(0, size);
    EXPECT_EQ(ParseChunks(Sliced(prefix, 5, random)).ok(),
              v1::AttendRequest().ParseFromString(prefix))
        << size;
  }
}

TEST(Wire, BoundsTheBytesAndChunksOfAMessage) {
  v1::AttendRequest message;
  message.add_chunks()->set_data(std::string(kMaxMessageBytes / 2, 'x'));
  message.add_chunks()->set_data(std::string(kMaxMessageBytes / 2, 'y'));
  EXPECT_TRUE(ParseChunks(Whole(message.SerializeAsString())).ok());
  message.add_chunks()->set_data("z");
  EXPECT_THAT(ParseChunks(Whole(message.SerializeAsString())).status().ToString(),
              HasSubstr("chunks hold at least 4194305 bytes of data: at most 4194304"));

  std::string empties;
  for (uint64_t i = 0; i < kMaxMessageChunks; ++i) empties += Delimited(2, "");
  const auto parsed = ParseChunks(Whole(empties));
  ASSERT_TRUE(parsed.ok());
  EXPECT_EQ(parsed->size(), kMaxMessageChunks);
  EXPECT_THAT(ParseChunks(Whole(empties + Delimited(2, ""))).status().ToString(),
              HasSubstr("more than 65536 chunks"));
}

TEST(Wire, TheFirstTagTellsChunksFromOtherMessages) {
  EXPECT_TRUE(CarriesChunks(Whole(Delimited(2, ""))));
  EXPECT_FALSE(CarriesChunks(Whole("")));
  EXPECT_FALSE(CarriesChunks(grpc::ByteBuffer()));
  EXPECT_FALSE(CarriesChunks(Whole(Delimited(1, ""))));
  EXPECT_FALSE(CarriesChunks(Whole(Field(2, 0, Varint(1)))));
  EXPECT_FALSE(CarriesChunks(Whole(Delimited(9, "") + Delimited(2, ""))));
  EXPECT_FALSE(CarriesChunks(Whole("\xFF")));
}

TEST(Wire, RefusesAMessageWithoutBytes) {
  EXPECT_EQ(ParseChunks(grpc::ByteBuffer()).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ParseProto<v1::AttendRequest>(grpc::ByteBuffer()).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(Wire, PartsOfAChunkShareItsBytes) {
  test::Random random(6);
  const std::string data = RandomBytes(random, 1'000);
  v1::AttendRequest message;
  v1::Chunk& sent = *message.add_chunks();
  sent.set_tensor(v1::TENSOR_ID_K);
  sent.set_offset(5'000);
  sent.set_data(data);
  const auto parsed = ParseChunks(Sliced(message.SerializeAsString(), 300, random));
  ASSERT_TRUE(parsed.ok());
  const DataChunk& chunk = parsed->front();
  ASSERT_GE(chunk.slices.size(), 3u);
  for (int round = 0; round < 300; ++round) {
    const uint64_t begin = random.Between(0, 1'000);
    const uint64_t length = random.Between(0, static_cast<int64_t>(1'000 - begin));
    const DataChunk part = chunk.Sub(begin, length);
    EXPECT_EQ(part.tensor, v1::TENSOR_ID_K);
    EXPECT_EQ(part.offset, 5'000 + begin);
    ASSERT_EQ(part.size, length);
    EXPECT_EQ(DataOf(part), data.substr(begin, length));
    uint64_t in_slices = 0;
    for (const grpc::Slice& slice : part.slices) in_slices += slice.size();
    EXPECT_EQ(in_slices, length);
  }
  const DataChunk all = chunk.Sub(0, 1'000);
  for (size_t i = 0; i < all.slices.size(); ++i)
    EXPECT_EQ(all.slices[i].begin(), chunk.slices[i].begin());
}

TEST(Wire, ChunksOutliveTheirMessage) {
  std::vector<DataChunk> chunks;
  {
    v1::AttendRequest message;
    message.add_chunks()->set_data(std::string(10'000, 'x'));
    message.add_chunks()->set_data("y");
    chunks = *ParseChunks(Whole(message.SerializeAsString()));
  }
  EXPECT_EQ(DataOf(chunks[0]), std::string(10'000, 'x'));
  EXPECT_EQ(DataOf(chunks[1]), "y");
}

TEST(Wire, BorrowedBytesAreReferencedUntilTheLastMessageIsGone) {
  struct Lender {
    std::string bytes = std::string(100'000, 'b');
    std::atomic<int> released = 0;
  } lender;
  const auto release = [](void* owner) { ++static_cast<Lender*>(owner)->released; };
  const auto* bytes = reinterpret_cast<const std::byte*>(lender.bytes.data());
  DataChunk chunk = BorrowedChunk(v1::TENSOR_ID_V, 7, bytes, lender.bytes.size(), release, &lender);
  grpc::ByteBuffer message = EncodeChunks({&chunk, 1});
  chunk = {};
  EXPECT_EQ(lender.released, 0);
  {
    std::vector<grpc::Slice> slices;
    ASSERT_TRUE(message.Dump(&slices).ok());
    EXPECT_EQ(slices.back().begin(), reinterpret_cast<const uint8_t*>(lender.bytes.data()));
  }
  auto parsed = ParseChunks(message);
  ASSERT_TRUE(parsed.ok());
  EXPECT_EQ(DataOf(parsed->front()), lender.bytes);
  std::thread([&] { message.Clear(); }).join();
  EXPECT_EQ(lender.released, 0);  // the parsed chunks hold it
  std::thread([&] { parsed->clear(); }).join();
  EXPECT_EQ(lender.released, 1);
}

TEST(Wire, SmallBorrowedBytesAreCopiedAndReleasedWithTheChunk) {
  std::string bytes = "few";
  int released = 0;
  const auto release = [](void* count) { ++*static_cast<int*>(count); };
  grpc::ByteBuffer message;
  {
    const DataChunk chunk =
        BorrowedChunk(v1::TENSOR_ID_Q, 0, reinterpret_cast<const std::byte*>(bytes.data()),
                      bytes.size(), release, &released);
    message = EncodeChunks({&chunk, 1});
  }
  EXPECT_EQ(released, 1);
  bytes = "new";
  EXPECT_EQ(DataOf(ParseChunks(message)->front()), "few");
}

TEST(Wire, ProtobufMessagesGoAroundAndStayAsTheyAre) {
  test::Random random(7);
  v1::AttendRequest request;
  request.mutable_header()->mutable_spec()->set_batch(3);
  request.mutable_header()->set_request_id("mine");
  const std::string bytes = request.SerializeAsString();
  EXPECT_EQ(Bytes(EncodeProto(request)), bytes);
  const grpc::ByteBuffer message = Sliced(bytes, 3, random);
  for (int i = 0; i < 2; ++i) {  // parsing does not consume the message
    const auto parsed = ParseProto<v1::AttendRequest>(message);
    ASSERT_TRUE(parsed.ok()) << parsed.status();
    EXPECT_EQ(parsed->SerializeAsString(), bytes);
  }
  const absl::Status status = ParseProto<v1::AttendRequest>(Whole("\x0a\x7f")).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("message is not a valid ringserve.v1.AttendRequest"));
}

}  // namespace
}  // namespace ringserve
