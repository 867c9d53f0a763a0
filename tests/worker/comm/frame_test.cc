#include "worker/comm/frame.h"

#include <random>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "proto/protocol.h"
#include "proto/wire.h"
#include "ringserve/v1/shard.pb.h"

namespace ringserve {
namespace {

using ::testing::HasSubstr;
using Bytes = std::vector<std::byte>;

v1::Frame MakeFrame(uint64_t job, uint32_t step, uint64_t offset, uint64_t size,
                    const std::string& data) {
  v1::Frame frame;
  frame.set_job(job);
  frame.set_step(step);
  frame.set_offset(offset);
  frame.set_size(size);
  frame.set_data(data);
  return frame;
}

grpc::ByteBuffer Buffer(const std::string& bytes) {
  const grpc::Slice slice(bytes);
  return grpc::ByteBuffer(&slice, 1);
}

std::string Contents(const grpc::ByteBuffer& buffer) {
  std::vector<grpc::Slice> slices;
  EXPECT_TRUE(buffer.Dump(&slices).ok());
  std::string contents;
  for (const grpc::Slice& slice : slices) contents.append(slice.begin(), slice.end());
  return contents;
}

TEST(Frame, IsTheMessageOfTheProto) {
  const Bytes first(300, std::byte{'a'}), second(5, std::byte{'b'}), none;
  const std::vector<std::span<const std::byte>> data = {first, none, second};
  const grpc::ByteBuffer buffer = EncodeFrame({.tag = {.job = UINT64_MAX, .step = UINT32_MAX},
                                               .offset = uint64_t{1} << 40,
                                               .size = uint64_t{1} << 41,
                                               .bytes = 305},
                                              data, std::make_shared<int>());
  v1::Frame frame;
  ASSERT_TRUE(frame.ParseFromString(Contents(buffer)));
  EXPECT_EQ(frame.job(), UINT64_MAX);
  EXPECT_EQ(frame.step(), UINT32_MAX);
  EXPECT_EQ(frame.offset(), uint64_t{1} << 40);
  EXPECT_EQ(frame.size(), uint64_t{1} << 41);
  EXPECT_EQ(frame.data(), absl::StrCat(std::string(300, 'a'), "bbbbb"));
}

TEST(Frame, OfAnEmptyTransferHasNoData) {
  grpc::ByteBuffer buffer = EncodeFrame({.tag = {.job = 3}}, {}, std::make_shared<int>());
  const absl::StatusOr<FrameHeader> header = FrameReader(buffer).ReadHeader();
  ASSERT_TRUE(header.ok()) << header.status();
  EXPECT_EQ(header->tag.job, 3u);
  EXPECT_EQ(header->size, 0u);
  EXPECT_EQ(header->bytes, 0u);
}

TEST(Frame, ThatProtobufWroteIsRead) {
  grpc::ByteBuffer buffer = EncodeProto(MakeFrame(7, 2, 10, 100, "some bytes"));
  FrameReader reader(buffer);
  const absl::StatusOr<FrameHeader> header = reader.ReadHeader();
  ASSERT_TRUE(header.ok()) << header.status();
  EXPECT_EQ(header->tag, (TransferTag{.job = 7, .step = 2}));
  EXPECT_EQ(header->offset, 10u);
  EXPECT_EQ(header->size, 100u);
  std::string data(header->bytes, '\0');
  ASSERT_TRUE(reader.Read(std::as_writable_bytes(std::span(data).first(4))));
  ASSERT_TRUE(reader.Read(std::as_writable_bytes(std::span(data).subspan(4))));
  EXPECT_EQ(data, "some bytes");
  std::byte more;
  EXPECT_FALSE(reader.Read({&more, 1}));
}

TEST(Frame, HoldsTheOwnerOfItsBytes) {
  auto owner = std::make_shared<int>();
  const Bytes bytes(100'000);
  const std::vector<std::span<const std::byte>> data = {bytes};
  grpc::ByteBuffer buffer = EncodeFrame({.size = bytes.size(), .bytes = bytes.size()}, data, owner);
  EXPECT_EQ(owner.use_count(), 2);
  std::vector<grpc::Slice> slices;
  ASSERT_TRUE(buffer.Dump(&slices).ok());
  EXPECT_EQ(reinterpret_cast<const std::byte*>(slices[1].begin()), bytes.data()) << "copied";
  slices.clear();
  buffer.Clear();
  EXPECT_EQ(owner.use_count(), 1);
}

TEST(Frame, ThatMakesNoSenseIsRefused) {
  v1::Frame no_size = MakeFrame(1, 0, 0, 0, "x"), no_data = MakeFrame(1, 0, 0, 10, "");
  std::string unknown = MakeFrame(1, 0, 0, 1, "").SerializeAsString() + std::string("\x30\x01", 2);
  const std::pair<std::string, const char*> wrong[] = {
      {no_size.SerializeAsString(), "1 bytes at 0 of a transfer of 0"},
      {no_data.SerializeAsString(), "0 bytes at 0 of a transfer of 10"},
      {MakeFrame(1, 0, 8, 10, "abc").SerializeAsString(), "3 bytes at 8 of a transfer of 10"},
      {MakeFrame(1, 0, 11, 10, "a").SerializeAsString(), "1 bytes at 11 of a transfer of 10"},
      {MakeFrame(1, 0, UINT64_MAX, 10, "abc").SerializeAsString(), "of a transfer of 10"},
      {MakeFrame(1, 0, UINT64_MAX - 1, UINT64_MAX, "abc").SerializeAsString(), "of a transfer of"},
      {MakeFrame(1, 0, 0, 1 << 30, std::string(kMaxMessageBytes + 1, 'x')).SerializeAsString(),
       "at most 4194304"},
      {MakeFrame(1, 0, 0, 10, "abc").SerializeAsString() + "more", "bytes of data where"},
      {unknown, "unexpected field 6"},
      {std::string("\x2a\x00", 2), "empty data"},
      {std::string("\x2a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", 11), "bytes of data where"},
      {std::string("\x0d\x01\x02\x03\x04", 5), "unexpected field 1"},
      {std::string("\x00\x00", 2), "unexpected field 0"},
      {std::string("\x08", 1), "cut off"}};
  for (const auto& [bytes, what] : wrong) {
    grpc::ByteBuffer buffer = Buffer(bytes);
    const absl::Status status = FrameReader(buffer).ReadHeader().status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << what;
    EXPECT_THAT(std::string(status.message()), HasSubstr(what));
  }
}

// Whatever comes, a header that is accepted describes bytes that are there.
TEST(Frame, NeverClaimsBytesThatAreNotThere) {
  std::mt19937 random(1);
  const std::string good =
      MakeFrame(1'000'000, 3, 500, 1'000, std::string(300, 'x')).SerializeAsString();
  int accepted = 0;
  for (int round = 0; round < 50'000; ++round) {
    std::string bytes = good;
    for (int change = 0; change < 1 + round % 3; ++change) {
      bytes[random() % std::min<size_t>(bytes.size(), 16)] = static_cast<char>(random());
    }
    if (round % 2 == 0) bytes.resize(random() % (bytes.size() + 1));
    grpc::ByteBuffer buffer = Buffer(bytes);
    FrameReader reader(buffer);
    const absl::StatusOr<FrameHeader> header = reader.ReadHeader();
    if (!header.ok()) continue;
    ++accepted;
    Bytes data(header->bytes);
    ASSERT_TRUE(reader.Read(data));
    ASSERT_LE(header->offset + header->bytes, header->size);
  }
  EXPECT_GT(accepted, 100);
}

}  // namespace
}  // namespace ringserve
