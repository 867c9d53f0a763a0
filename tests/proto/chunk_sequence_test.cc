#include "proto/chunk_sequence.h"

#include <algorithm>
#include <limits>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/random.h"

namespace ringserve {
namespace {

using testing::HasSubstr;

constexpr uint64_t kMaxUint64 = std::numeric_limits<uint64_t>::max();

template <typename Status>
std::string Text(const Status& status) {
  return std::string(status.message());
}

TEST(ChunkSequence, AcceptsTensorsThatInterleaveWhileEachAscends) {
  ChunkSequence upload;
  upload.Expect(v1::TENSOR_ID_Q, 10);
  upload.Expect(v1::TENSOR_ID_K, 4);
  EXPECT_FALSE(upload.complete());
  EXPECT_TRUE(upload.Accept(v1::TENSOR_ID_Q, 0, 3).ok());
  EXPECT_TRUE(upload.Accept(v1::TENSOR_ID_K, 0, 1).ok());
  EXPECT_TRUE(upload.Accept(v1::TENSOR_ID_Q, 3, 7).ok());
  EXPECT_FALSE(upload.complete());
  EXPECT_TRUE(upload.Accept(v1::TENSOR_ID_K, 1, 3).ok());
  EXPECT_TRUE(upload.complete());
  EXPECT_TRUE(upload.CheckComplete().ok());
}

TEST(ChunkSequence, AcceptsBlocksThatGrowSideBySide) {
  ChunkSequence upload;
  upload.ExpectBlocks(v1::TENSOR_ID_BIAS, {4, 2, 6});
  EXPECT_TRUE(upload.Accept(v1::TENSOR_ID_BIAS, 4, 1).ok());
  EXPECT_TRUE(upload.Accept(v1::TENSOR_ID_BIAS, 0, 3).ok());
  EXPECT_TRUE(upload.Accept(v1::TENSOR_ID_BIAS, 5, 2).ok())
      << "the end of one, the next one's begin";
  EXPECT_TRUE(upload.Accept(v1::TENSOR_ID_BIAS, 3, 1).ok());
  EXPECT_THAT(Text(upload.CheckComplete()), HasSubstr("5 are missing"));
  EXPECT_TRUE(upload.Accept(v1::TENSOR_ID_BIAS, 7, 5).ok());
  EXPECT_TRUE(upload.complete());
}

TEST(ChunkSequence, RefusesWhatIsNotTheNextByteOfItsBlock) {
  const struct {
    uint64_t offset, size;
    const char* says;
  } kWrongs[] = {
      {4, 1, "expected offset 5 (an overlap)"},
      {0, 1, "expected offset 1 (an overlap)"},
      {2, 1, "expected offset 1 (a gap)"},
      {7, 1, "expected offset 6 (a gap)"},
      {1, 4, "expected offset 5 (an overlap)"},  // into the second block, which has begun
      {6, 7, "7 bytes go past the tensor's end at 12 bytes"},
      {12, 1, "expected offset 6 (a gap)"},
  };
  for (const auto& wrong : kWrongs) {
    ChunkSequence upload;
    upload.ExpectBlocks(v1::TENSOR_ID_BIAS, {4, 2, 6});
    ASSERT_TRUE(upload.Accept(v1::TENSOR_ID_BIAS, 0, 1).ok());
    ASSERT_TRUE(upload.Accept(v1::TENSOR_ID_BIAS, 4, 1).ok());
    const absl::Status status = upload.Accept(v1::TENSOR_ID_BIAS, wrong.offset, wrong.size);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(Text(status), HasSubstr(wrong.says));
  }
}

TEST(ChunkSequence, RefusesWhatIsNotTheNextByte) {
  struct Wrong {
    v1::TensorId tensor;
    uint64_t offset, size;
    const char* says;
  };
  const Wrong wrongs[] = {
      {v1::TENSOR_ID_V, 0, 1, "v: not a tensor of this request's upload"},
      {static_cast<v1::TensorId>(77), 0, 1, "tensor 77: not a tensor"},
      {v1::TENSOR_ID_UNSPECIFIED, 0, 1, "tensor 0: not a tensor"},
      {v1::TENSOR_ID_Q, 4, 0, "chunk of q at offset 4: chunks.data is empty"},
      {v1::TENSOR_ID_Q, 5, 1, "chunk of q at offset 5: expected offset 4 (a gap)"},
      {v1::TENSOR_ID_Q, 3, 1, "chunk of q at offset 3: expected offset 4 (an overlap)"},
      {v1::TENSOR_ID_Q, 4, 7, "7 bytes go past the tensor's end at 10 bytes"},
      {v1::TENSOR_ID_Q, 4, kMaxUint64, "go past the tensor's end at 10 bytes"},
      {v1::TENSOR_ID_Q, kMaxUint64, 1, "expected offset 4 (a gap)"},
      {v1::TENSOR_ID_K, 2, 1, "chunk of k at offset 2: 1 bytes go past the tensor's end at 2"},
  };
  for (const Wrong& wrong : wrongs) {
    ChunkSequence upload;
    upload.Expect(v1::TENSOR_ID_Q, 10);
    upload.Expect(v1::TENSOR_ID_K, 2);
    ASSERT_TRUE(upload.Accept(v1::TENSOR_ID_Q, 0, 4).ok());
    ASSERT_TRUE(upload.Accept(v1::TENSOR_ID_K, 0, 2).ok());
    const absl::Status status = upload.Accept(wrong.tensor, wrong.offset, wrong.size);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(Text(status), HasSubstr(wrong.says));
    // What was refused was not counted.
    EXPECT_TRUE(upload.Accept(v1::TENSOR_ID_Q, 4, 6).ok());
    EXPECT_TRUE(upload.complete());
  }
}

TEST(ChunkSequence, SaysWhichTensorLacksHowManyBytes) {
  ChunkSequence upload;
  upload.Expect(v1::TENSOR_ID_K, 2);
  upload.Expect(v1::TENSOR_ID_V, 10);
  ASSERT_TRUE(upload.Accept(v1::TENSOR_ID_K, 0, 2).ok());
  ASSERT_TRUE(upload.Accept(v1::TENSOR_ID_V, 0, 7).ok());
  const absl::Status status = upload.CheckComplete();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(Text(status), HasSubstr("upload of v ended after 7 of 10 bytes: 3 are missing"));
}

TEST(ChunkSequence, IsCompleteWhereNothingIsExpected) {
  EXPECT_TRUE(ChunkSequence().complete());
  EXPECT_TRUE(ChunkSequence().CheckComplete().ok());
}

TEST(ChunkCoverage, AcceptsChunksInAnyOrder) {
  test::Random random(11);
  for (int round = 0; round < 200; ++round) {
    struct Piece {
      v1::TensorId tensor;
      uint64_t offset, size;
    };
    ChunkCoverage answer;
    std::vector<Piece> pieces;
    for (const v1::TensorId tensor : {v1::TENSOR_ID_OUT, v1::TENSOR_ID_LSE}) {
      const uint64_t bytes = random.Between(1, 60);
      answer.Expect(tensor, bytes);
      for (uint64_t at = 0; at < bytes;) {
        const uint64_t size = std::min<uint64_t>(random.Between(1, 9), bytes - at);
        pieces.push_back({tensor, at, size});
        at += size;
      }
    }
    for (size_t i = pieces.size() - 1; i > 0; --i)
      std::swap(pieces[i], pieces[random.Between(0, static_cast<int64_t>(i))]);
    for (size_t i = 0; i < pieces.size(); ++i) {
      EXPECT_FALSE(answer.complete());
      const auto& [tensor, offset, size] = pieces[i];
      ASSERT_TRUE(answer.Accept(tensor, offset, size).ok());
      // Not a second time, whole or in part.
      ASSERT_FALSE(answer.Accept(tensor, offset, size).ok());
      ASSERT_FALSE(answer.Accept(tensor, offset + random.Between(0, size - 1), 1).ok());
    }
    EXPECT_TRUE(answer.complete());
  }
}

TEST(ChunkCoverage, AgreesWithMarkingByteByByte) {
  constexpr uint64_t kBytes = 40;
  test::Random random(12);
  int accepted = 0, refused = 0;
  for (int round = 0; round < 300; ++round) {
    ChunkCoverage answer;
    answer.Expect(v1::TENSOR_ID_OUT, kBytes);
    std::vector<bool> marked(kBytes);
    for (int i = 0; i < 60; ++i) {
      const uint64_t offset = random.Between(0, kBytes + 2);
      const uint64_t size = random.Between(0, 6);
      bool fits = size > 0 && offset + size <= kBytes;
      for (uint64_t at = offset; fits && at < offset + size; ++at) fits = !marked[at];
      ASSERT_EQ(answer.Accept(v1::TENSOR_ID_OUT, offset, size).ok(), fits);
      if (fits) std::fill_n(marked.begin() + static_cast<int64_t>(offset), size, true);
      ++(fits ? accepted : refused);
      ASSERT_EQ(answer.complete(), std::count(marked.begin(), marked.end(), false) == 0);
    }
  }
  EXPECT_GT(accepted, 1'000);
  EXPECT_GT(refused, 1'000);
}

TEST(ChunkCoverage, BlamesTheServer) {
  struct Wrong {
    v1::TensorId tensor;
    uint64_t offset, size;
    const char* says;
  };
  const Wrong wrongs[] = {
      {v1::TENSOR_ID_LSE, 0, 1, "a chunk of lse: not asked for"},
      {v1::TENSOR_ID_OUT, 0, 0, "at offset 0 with 0 bytes is empty"},
      {v1::TENSOR_ID_OUT, 9, 2, "at offset 9 with 2 bytes goes past the tensor's end at 10"},
      {v1::TENSOR_ID_OUT, 11, 1, "goes past the tensor's end at 10"},
      {v1::TENSOR_ID_OUT, kMaxUint64, 1, "goes past the tensor's end at 10"},
      {v1::TENSOR_ID_OUT, 1, kMaxUint64, "goes past the tensor's end at 10"},
      {v1::TENSOR_ID_OUT, 0, 5, "repeats bytes from 4"},
      {v1::TENSOR_ID_OUT, 5, 2, "repeats bytes up to 6"},
      {v1::TENSOR_ID_OUT, 0, 10, "repeats bytes from 4"},
  };
  for (const Wrong& wrong : wrongs) {
    ChunkCoverage answer;
    answer.Expect(v1::TENSOR_ID_OUT, 10);
    ASSERT_TRUE(answer.Accept(v1::TENSOR_ID_OUT, 4, 2).ok());
    const absl::Status status = answer.Accept(wrong.tensor, wrong.offset, wrong.size);
    EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
    EXPECT_THAT(Text(status), HasSubstr(wrong.says));
  }
}

}  // namespace
}  // namespace ringserve
