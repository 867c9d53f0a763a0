// Staging between messages and a device, on one that is strict and late. The host's memory, too, as
// far as both promise the same.
#include "worker/staging.h"

#include <algorithm>
#include <atomic>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "proto/protocol.h"
#include "tests/support/wait.h"
#include "tests/worker/fake_copies.h"
#include "worker/host_memory.h"

namespace ringserve::test {
namespace {

using ::testing::AllOf;
using ::testing::Each;
using ::testing::HasSubstr;

constexpr v1::TensorId kOutput = v1::TENSOR_ID_OUT;

std::string RandomBytes(std::mt19937_64& random, uint64_t size) {
  std::string bytes(size, '\0');
  for (char& c : bytes) c = static_cast<char>(random());
  return bytes;
}

// A chunk of one slice or two.
DataChunk ChunkOf(const std::string& bytes) {
  DataChunk chunk{.size = bytes.size()};
  const size_t half = bytes.size() / 2;
  if (half > 0) chunk.slices.emplace_back(bytes.substr(0, half));
  if (!bytes.empty()) chunk.slices.emplace_back(bytes.substr(half));
  return chunk;
}

std::string BytesOf(const DataChunk& chunk) {
  std::string bytes(chunk.size, '\0');
  chunk.CopyTo(reinterpret_cast<std::byte*>(bytes.data()));
  return bytes;
}

class StagingTest : public ::testing::Test {
 protected:
  void Begin(FakeCopies::Options device = {}, StagingOptions options = {}) {
    options.device_lost = [this](const absl::Status& why) {
      std::lock_guard lock(mu_);
      lost_.emplace_back(why.message());
    };
    copies_ = std::make_shared<FakeCopies>(device);
    staging_ = std::make_unique<Staging>(copies_, options);
  }

  void TearDown() override {
    staging_.reset();
    EXPECT_EQ(copies_->faults(), "");
    EXPECT_EQ(copies_->device_bytes(), 0u);
    EXPECT_EQ(copies_->pinned_bytes(), 0u);
  }

  std::vector<std::string> lost() {
    std::lock_guard lock(mu_);
    return lost_;
  }

  absl::Status Write(const TensorBuffer& buffer, const std::string& bytes,
                     std::shared_ptr<const void> keep_alive = nullptr) {
    const DataChunk chunk = ChunkOf(bytes);
    const PlacedChunk placed{&chunk, buffer.data};
    return staging_->Write({&placed, 1}, keep_alive == nullptr ? buffer.owner : keep_alive);
  }

  std::mutex mu_;
  std::vector<std::string> lost_;
  std::shared_ptr<FakeCopies> copies_;
  std::unique_ptr<Staging> staging_;
};

// What a call does with its tensors: upload in messages of any sizes, settle, take the rows back.
// `cut` of 1,000: ends there, as a cancelled call would.
class AnyCall {
 public:
  AnyCall(TensorMemory& memory, uint64_t seed) : memory_(memory), random_(seed) {}

  void Run() {
    const int tensors = 1 + Pick(3);
    auto job = std::make_shared<std::vector<TensorBuffer>>();
    std::vector<std::string> sent;
    for (int i = 0; i < tensors; ++i) {
      sent.push_back(RandomBytes(random_, Pick(4) == 0 ? Pick(3) : Pick(3'000'000)));
      job->push_back(*memory_.Allocate(sent[i].size()));
      ASSERT_EQ(job->back().size, sent[i].size());
      ASSERT_EQ(job->back().data == nullptr, sent[i].empty());
    }
    const int end = Pick(3) == 0 ? Pick(20) : 1'000'000;  // cancelled there
    int step = 0;
    std::vector<uint64_t> at(tensors, 0);
    const auto complete = [&] {
      for (int i = 0; i < tensors; ++i) {
        if (at[i] < sent[i].size()) return false;
      }
      return true;
    };
    while (!complete()) {
      if (++step > end) return (void)memory_.Settle();
      ASSERT_TRUE(Message(*job, sent, at, job).ok());
    }
    ASSERT_TRUE(memory_.Settle().ok());
    std::unique_ptr<TensorMemory::Fetch> ahead;
    std::vector<DataChunk> unsent;  // that nobody has read yet
    for (int i = 0; i < tensors; ++i) {
      for (uint64_t begin = 0; begin < sent[i].size();) {
        if (++step > end) return;
        const uint64_t size =
            std::min<uint64_t>(sent[i].size() - begin, 1 + Pick(Pick(2) == 0 ? 100'000 : 1 << 20));
        auto fetch = memory_.Begin((*job)[i].data + begin, size, job);
        ASSERT_TRUE(fetch.ok()) << fetch.status();
        const absl::StatusOr<DataChunk> chunk = (*fetch)->Take(kOutput, begin);
        ASSERT_TRUE(chunk.ok()) << chunk.status();
        ASSERT_EQ(chunk->offset, begin);
        ASSERT_EQ(chunk->tensor, kOutput);
        ASSERT_TRUE(BytesOf(*chunk) == sent[i].substr(begin, size));
        begin += size;
        if (Pick(3) == 0) unsent.push_back(*chunk);
        if (Pick(3) == 0) ahead = *memory_.Begin((*job)[i].data, 1, job);  // not taken
      }
    }
  }

 private:
  int Pick(int n) { return static_cast<int>(random_() % n); }

  absl::Status Message(const std::vector<TensorBuffer>& buffers,
                       const std::vector<std::string>& sent, std::vector<uint64_t>& at,
                       const std::shared_ptr<const void>& keep_alive) {
    std::vector<DataChunk> chunks;
    std::vector<std::byte*> places;
    uint64_t room = 1 + Pick(Pick(4) == 0 ? kMaxMessageBytes : kChunkBytes);
    for (int n = 1 + Pick(5); n > 0; --n) {
      const int i = Pick(static_cast<int>(buffers.size()));
      const uint64_t size = std::min({room, sent[i].size() - at[i], uint64_t(1 + Pick(1 << 20))});
      chunks.push_back(ChunkOf(sent[i].substr(at[i], size)));
      places.push_back(buffers[i].data + at[i]);
      at[i] += size;
      room -= size;
    }
    std::vector<PlacedChunk> placed;
    for (size_t i = 0; i < chunks.size(); ++i) placed.push_back({&chunks[i], places[i]});
    return memory_.Write(placed, keep_alive);
  }

  TensorMemory& memory_;
  std::mt19937_64 random_;
};

void RunCallsSideBySide(TensorMemory& memory, uint64_t seed, int calls) {
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < calls && !::testing::Test::HasFailure(); ++i) {
        AnyCall(memory, seed * 1'000 + t * 100 + i).Run();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST_F(StagingTest, BytesGoInAndComeOutWholeWhateverTheCallsDo) {
  for (uint64_t seed = 1; seed <= 6; ++seed) {
    Begin({.by_itself = true, .seed = seed}, {.pieces_in = seed % 2 == 0 ? 8 : 2, .pieces_out = 3});
    RunCallsSideBySide(*staging_, seed, 12);
    EXPECT_TRUE(staging_->Settle().ok());
    EXPECT_EQ(copies_->device_bytes(), 0u) << seed;
    if (seed < 6) TearDown();
  }
  EXPECT_TRUE(lost().empty());
}

TEST(HostMemory, BytesGoInAndComeOutWholeWhateverTheCallsDo) {
  HostMemory memory;
  RunCallsSideBySide(memory, 1, 12);
}

TEST(HostMemory, ARowThatIsSentIsTheRowItself) {
  HostMemory memory;
  TensorBuffer buffer = *memory.Allocate(1'000);
  const std::weak_ptr<const void> owner = buffer.owner;
  const std::byte* const row = buffer.data + 100;
  auto chunk = *(*memory.Begin(row, 300, std::exchange(buffer.owner, nullptr)))->Take(kOutput, 7);
  EXPECT_EQ(chunk.slices[0].begin(), reinterpret_cast<const uint8_t*>(row));
  EXPECT_FALSE(owner.expired());
  chunk.slices.clear();
  EXPECT_TRUE(owner.expired());
}

TEST_F(StagingTest, MemoryIsZeroAtFirst) {
  Begin();
  const TensorBuffer buffer = *staging_->Allocate(5'000);
  ASSERT_TRUE(staging_->Settle().ok());
  EXPECT_EQ(copies_->Read(buffer.data, 5'000), std::string(5'000, '\0'));
  const TensorBuffer none = *staging_->Allocate(0);
  EXPECT_EQ(none.data, nullptr);
}

TEST_F(StagingTest, AMessageThatContinuesItsTensorIsOneCopy) {
  Begin();
  const TensorBuffer buffer = *staging_->Allocate(30);
  const DataChunk chunks[] = {ChunkOf("abcd"), ChunkOf(""), ChunkOf("efg"), ChunkOf("xyz")};
  const PlacedChunk placed[] = {{&chunks[0], buffer.data},
                                {&chunks[1], buffer.data + 4},
                                {&chunks[2], buffer.data + 4},
                                {&chunks[3], buffer.data + 20}};
  ASSERT_TRUE(staging_->Write(placed, buffer.owner).ok());
  EXPECT_EQ(copies_->begun(DeviceCopies::kIn), 2u);
  while (copies_->Step(DeviceCopies::kIn)) {
  }
  EXPECT_EQ(copies_->Read(buffer.data, 7), "abcdefg");
  EXPECT_EQ(copies_->Read(buffer.data + 20, 3), "xyz");
}

TEST_F(StagingTest, APieceIsWrittenAgainWhenItsCopyIsOverAndNoSooner) {
  Begin({}, {.pieces_in = 2});
  const TensorBuffer buffer = *staging_->Allocate(100);
  for (const char* text : {"first", "second"}) ASSERT_TRUE(Write(buffer, text).ok());
  std::atomic<bool> written{false};
  std::thread third([&] {
    EXPECT_TRUE(Write(buffer, "third").ok());
    written = true;
  });
  std::this_thread::yield();
  EXPECT_FALSE(written);
  EXPECT_EQ(copies_->begun(DeviceCopies::kIn), 2u);
  copies_->Step(DeviceCopies::kIn);
  EXPECT_TRUE(WaitUntil([&] { return written.load(); }));
  third.join();
  while (copies_->Step(DeviceCopies::kIn)) {
  }
  EXPECT_EQ(copies_->Read(buffer.data, 6), "thirdd");
  EXPECT_EQ(copies_->pinned_bytes(), 2 * kMaxMessageBytes);
}

TEST_F(StagingTest, SettleWaitsForAllThatWasWrittenAndLetsItsOwnersGo) {
  Begin();
  TensorBuffer buffer = *staging_->Allocate(100);
  ASSERT_TRUE(Write(buffer, "some").ok());
  ASSERT_TRUE(Write(buffer, "thing").ok());
  const std::weak_ptr<const void> owner = buffer.owner;
  buffer.owner.reset();  // the call is cancelled
  std::atomic<bool> settled{false};
  std::thread settling([&] {
    EXPECT_TRUE(staging_->Settle().ok());
    EXPECT_TRUE(owner.expired());
    settled = true;
  });
  copies_->Step(DeviceCopies::kIn);
  std::this_thread::yield();
  EXPECT_FALSE(settled);
  EXPECT_FALSE(owner.expired());
  copies_->Step(DeviceCopies::kIn);
  settling.join();
}

TEST_F(StagingTest, AFetchThatNobodyTakesKeepsItsRowsUntilTheyAreRead) {
  Begin();
  TensorBuffer buffer = *staging_->Allocate(100);
  const std::weak_ptr<const void> owner = buffer.owner;
  auto fetch = *staging_->Begin(buffer.data, 100, std::exchange(buffer.owner, nullptr));
  std::thread dropping([&] { fetch.reset(); });
  std::this_thread::yield();
  EXPECT_FALSE(owner.expired());
  copies_->Step(DeviceCopies::kOut);
  dropping.join();
  EXPECT_TRUE(owner.expired());
}

TEST_F(StagingTest, RowsThatNobodyReadsHoldUpNobody) {
  Begin({.by_itself = true}, {.pieces_out = 2});
  const TensorBuffer buffer = *staging_->Allocate(10);
  copies_->Fill(buffer.data, "0123456789");
  std::vector<DataChunk> unsent;
  for (int i = 0; i < 5; ++i) {
    auto fetch = *staging_->Begin(buffer.data + i, 3, buffer.owner);
    unsent.push_back(*fetch->Take(kOutput, i));
  }
  for (int i = 0; i < 5; ++i) EXPECT_EQ(BytesOf(unsent[i]), std::string("0123456789").substr(i, 3));
  EXPECT_EQ(copies_->pinned_bytes(), 2 * kChunkBytes);
}

TEST_F(StagingTest, RowsMayBeSentWhenTheMemoryIsNoMore) {
  Begin({.by_itself = true});
  DataChunk chunk;
  {
    const TensorBuffer buffer = *staging_->Allocate(10);
    copies_->Fill(buffer.data, "0123456789");
    chunk = *(*staging_->Begin(buffer.data, 10, buffer.owner))->Take(kOutput, 0);
  }
  EXPECT_EQ(copies_->device_bytes(), 0u);
  staging_.reset();
  EXPECT_EQ(BytesOf(chunk), "0123456789");
}

TEST_F(StagingTest, MemoryThatIsNotThereIsRefusedAndNothingIsLost) {
  Begin({.device_bytes = 100, .pinned_bytes = kMaxMessageBytes - 1});
  const absl::StatusOr<TensorBuffer> buffer = staging_->Allocate(100);
  ASSERT_TRUE(buffer.ok());
  EXPECT_TRUE(absl::IsResourceExhausted(staging_->Allocate(1).status()));
  EXPECT_TRUE(absl::IsResourceExhausted(Write(*buffer, "x")));
  EXPECT_TRUE(lost().empty());
}

TEST_F(StagingTest, ADeviceThatDoesNotFinishIsLostAndWhatItTouchesKept) {
  Begin({}, {.patience = std::chrono::milliseconds(20)});
  TensorBuffer buffer = *staging_->Allocate(100);
  ASSERT_TRUE(Write(buffer, "some").ok());
  auto fetch = *staging_->Begin(buffer.data, 10, buffer.owner);
  buffer.owner.reset();
  const absl::Status status = staging_->Settle();
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(status.message()), HasSubstr("not over after 20 ms"));
  EXPECT_EQ(fetch->Take(kOutput, 0).status().code(), absl::StatusCode::kInternal);
  fetch.reset();
  EXPECT_THAT(lost(), AllOf(::testing::SizeIs(2), Each(HasSubstr("the device failed"))));
  EXPECT_EQ(copies_->device_bytes(), 100u);
  copies_->Step(DeviceCopies::kIn);
  copies_->Step(DeviceCopies::kOut);
}

TEST_F(StagingTest, EveryFailureOfTheDeviceIsTold) {
  Begin({.by_itself = true});
  const TensorBuffer buffer = *staging_->Allocate(100);
  auto fetch = *staging_->Begin(buffer.data, 10, buffer.owner);
  EXPECT_TRUE((*staging_->Begin(buffer.data, 10, buffer.owner))->Take(kOutput, 0).ok());
  copies_->Fail();
  for (const absl::Status& status :
       {staging_->Allocate(1).status(), Write(buffer, "x"), staging_->Settle(),
        fetch->Take(kOutput, 0).status(), staging_->Begin(buffer.data, 1, buffer.owner).status()}) {
    EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
    EXPECT_THAT(std::string(status.message()), HasSubstr("illegal memory access"));
  }
  EXPECT_EQ(lost().size(), 5u);
  fetch.reset();
  copies_->Recover();
}

}  // namespace
}  // namespace ringserve::test
