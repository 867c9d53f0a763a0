#include "server/plan/shard_map.h"

#include <cstring>
#include <numeric>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/plan/golden_mask.h"
#include "tests/support/random.h"
#include "tests/support/safetensors.h"

namespace ringserve::test {
namespace {

using ::testing::ElementsAre;

// For every byte of the tensor: the rank that has it and where. Built byte by byte from the
// definition of a shard.
struct Place {
  int rank = -1;
  uint64_t offset = 0;
  friend bool operator==(const Place&, const Place&) = default;
};

std::vector<Place> PlacesOf(const TensorShape& shape, const SequenceLayout& layout) {
  std::vector<Place> places(shape.bytes());
  for (int rank = 0; rank < layout.ranks(); ++rank) {
    uint64_t offset = 0;
    for (int64_t b = 0; b < shape.batch; ++b) {
      for (int64_t plane = 0; plane < shape.planes_per_batch; ++plane) {
        for (const Segment& segment : layout.row(b)[rank]) {
          for (int64_t s = segment.begin; s < segment.end; ++s) {
            const uint64_t row = (b * shape.planes_per_batch + plane) * shape.rows + s;
            for (int64_t byte = 0; byte < shape.row_bytes; ++byte) {
              places[row * shape.row_bytes + byte] = {rank, offset++};
            }
          }
        }
      }
    }
  }
  return places;
}

SequenceLayout RandomLayout(Random& random, int64_t length, int ranks) {
  switch (random.Between(0, 3)) {
    case 0:
      return ContiguousLayout(length, ranks);
    case 1:
      return EvenLayout(length, ranks);
    case 2:
      return {{PerDocumentRow(std::vector<int64_t>{length / 3, length / 4}, length, ranks)}};
    default:
      return HeadTailLayout(length, ranks);
  }
}

struct Sharded {
  TensorShape shape;
  SequenceLayout layout;
};

Sharded RandomSharded(Random& random) {
  const int ranks = static_cast<int>(random.Between(1, 8));
  Sharded sharded;
  sharded.shape = {.batch = random.Between(1, 3),
                   .planes_per_batch = random.Between(1, 3),
                   .rows = random.Between(1, 24),
                   .row_bytes = random.Pick({1, 2, 8, 12})};
  sharded.layout = RandomLayout(random, sharded.shape.rows, ranks);
  if (random.Chance(0.5)) {  // each batch row its own
    sharded.layout.rows.clear();
    for (int64_t b = 0; b < sharded.shape.batch; ++b) {
      sharded.layout.rows.push_back(RandomLayout(random, sharded.shape.rows, ranks).rows[0]);
      if (random.Chance(0.3)) std::swap(sharded.layout.rows[b][0], sharded.layout.rows[b].back());
    }
  }
  return sharded;
}

TEST(ShardMap, SaysOfEveryByteWhereItLives) {
  Random random(1);
  for (int i = 0; i < 500; ++i) {
    const auto [shape, layout] = RandomSharded(random);
    const ShardMap map(shape, layout);
    const std::vector<Place> places = PlacesOf(shape, layout);
    const uint64_t begin = random.Between(0, shape.bytes());
    const uint64_t end = random.Between(begin, shape.bytes());
    uint64_t at = begin;
    for (const ByteRun& run : map.FromTensor(begin, end - begin)) {
      ASSERT_EQ(run.tensor_offset, at);
      ASSERT_GT(run.size, 0u);
      for (uint64_t byte = 0; byte < run.size; ++byte) {
        ASSERT_EQ((Place{run.rank, run.shard_offset + byte}), places[at + byte]) << "case " << i;
      }
      at += run.size;
    }
    ASSERT_EQ(at, end);
  }
}

TEST(ShardMap, LeadsBackFromEveryShard) {
  Random random(2);
  for (int i = 0; i < 500; ++i) {
    const auto [shape, layout] = RandomSharded(random);
    const ShardMap map(shape, layout);
    const std::vector<Place> places = PlacesOf(shape, layout);
    uint64_t total = 0;
    for (int rank = 0; rank < layout.ranks(); ++rank) {
      total += map.ShardBytes(rank);
      const uint64_t begin = random.Between(0, map.ShardBytes(rank));
      const uint64_t end = random.Between(begin, map.ShardBytes(rank));
      uint64_t at = begin;
      for (const ByteRun& run : map.FromShard(rank, begin, end - begin)) {
        ASSERT_EQ(run.rank, rank);
        ASSERT_EQ(run.shard_offset, at);
        ASSERT_GT(run.size, 0u);
        for (uint64_t byte = 0; byte < run.size; ++byte) {
          ASSERT_EQ((Place{rank, at + byte}), places[run.tensor_offset + byte]) << "case " << i;
        }
        at += run.size;
      }
      ASSERT_EQ(at, end);
    }
    ASSERT_EQ(total, shape.bytes());
  }
}

TEST(ShardMap, MakesRunsAsLongAsTheyCanBe) {
  const TensorShape shape{.batch = 2, .planes_per_batch = 3, .rows = 8, .row_bytes = 4};
  const ShardMap alone(shape, ContiguousLayout(8, 1));
  EXPECT_THAT(alone.FromTensor(0, shape.bytes()), ElementsAre(ByteRun{0, 0, 0, shape.bytes()}));
  EXPECT_THAT(alone.FromShard(0, 0, shape.bytes()), ElementsAre(ByteRun{0, 0, 0, shape.bytes()}));
  // Rank 1's two pieces are neighbours: [2, 6) is one run in each plane.
  const ShardMap two(shape, HeadTailLayout(8, 2));
  EXPECT_EQ(two.FromTensor(0, shape.bytes()).size(), 2 * 3 * 2 + 1u);
  EXPECT_EQ(two.FromShard(1, 0, two.ShardBytes(1)).size(), 6u);
  EXPECT_THAT(two.FromTensor(5, 0), ElementsAre());
}

// The fixtures' buffers as tensors of ours: what comes before the sequence is planes, what comes
// after it is a row.
TEST(ShardMap, ShardsAsPyTorchDoes) {
  const SafetensorsFile file(GoldenPath("golden/shard.safetensors"));
  const nlohmann::json golden = ReadGoldenJson("golden/shard.json");
  int cases = 0;
  for (const nlohmann::json& c : golden.at("tensor_cases")) {
    const std::string name = c.at("name");
    SCOPED_TRACE(c.dump());
    const auto dims = c.at("shape").get<std::vector<int64_t>>();
    const int seq_dim = c.at("seq_dim"), ranks = c.at("world_size");
    TensorShape shape{
        .batch = 1, .planes_per_batch = 1, .rows = dims[seq_dim], .row_bytes = sizeof(int64_t)};
    for (int d = 0; d < seq_dim; ++d) (d == 0 ? shape.batch : shape.planes_per_batch) *= dims[d];
    for (size_t d = seq_dim + 1; d < dims.size(); ++d) shape.row_bytes *= dims[d];
    const ShardMap map(shape, GoldenLayout(c.at("balancer"), shape.rows, ranks));
    std::vector<int64_t> buffer(shape.bytes() / sizeof(int64_t));
    std::iota(buffer.begin(), buffer.end(), 0);
    std::vector<int64_t> unsharded(buffer.size(), -1);
    for (int rank = 0; rank < ranks; ++rank) {
      std::vector<int64_t> shard(map.ShardBytes(rank) / sizeof(int64_t));
      for (const ByteRun& run : map.FromTensor(0, shape.bytes())) {
        if (run.rank != rank) continue;
        std::memcpy(reinterpret_cast<char*>(shard.data()) + run.shard_offset,
                    reinterpret_cast<char*>(buffer.data()) + run.tensor_offset, run.size);
      }
      EXPECT_EQ(shard, file.at(name + "/rank" + std::to_string(rank)).As<int64_t>()) << rank;
      for (const ByteRun& run : map.FromShard(rank, 0, map.ShardBytes(rank))) {
        std::memcpy(reinterpret_cast<char*>(unsharded.data()) + run.tensor_offset,
                    reinterpret_cast<char*>(shard.data()) + run.shard_offset, run.size);
      }
    }
    EXPECT_EQ(unsharded, buffer);
    ++cases;
  }
  EXPECT_GE(cases, 80);
}

}  // namespace
}  // namespace ringserve::test
