#include "server/plan/ptrr.h"

#include <algorithm>
#include <numeric>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "server/plan/workload.h"
#include "tests/plan/golden_mask.h"
#include "tests/support/random.h"
#include "tests/support/safetensors.h"

namespace ringserve::test {
namespace {

using ::testing::ElementsAre;

TEST(Ptrr, SchedulesAsPyTorchDoes) {
  const nlohmann::json golden = ReadGoldenJson("golden/balancers.json");
  int cases = 0;
  for (const nlohmann::json& c : golden.at("ptrr_scheduling")) {
    const auto times = c.at("process_time").get<std::vector<int64_t>>();
    // Work is never below 0 here; only the order of the numbers matters.
    const int64_t least = std::accumulate(times.begin(), times.end(), int64_t{0},
                                          [](int64_t a, int64_t b) { return std::min(a, b); });
    std::vector<uint64_t> work;
    for (const int64_t time : times) work.push_back(time - least);
    const auto expected = c.at("groups").get<std::vector<std::vector<int64_t>>>();
    EXPECT_EQ(PtrrSchedule(work, c.at("group_size")), expected) << c.dump();
    ++cases;
  }
  EXPECT_GE(cases, 25);
}

TEST(Ptrr, CountsBlocksAndMakesPermutationsAsPyTorchDoes) {
  const nlohmann::json golden = ReadGoldenJson("golden/balancers.json");
  int cases = 0;
  for (const nlohmann::json& c : golden.at("ptrr")) {
    const nlohmann::json& balancer = c.at("balancer");
    SCOPED_TRACE(balancer.dump());
    const int64_t length = balancer.at("seq_length"), block = balancer.at("block_size");
    const int ranks = c.at("world_size");
    for (size_t b = 0; b < c.at("indices").size(); ++b) {
      const std::vector<Band> bands = GoldenBands(balancer.at("mask"), length, b);
      auto blocks = c.at("kv_num_blocks")[b].get<std::vector<uint64_t>>();
      const auto full = c.at("full_kv_num_blocks")[b].get<std::vector<uint64_t>>();
      for (size_t i = 0; i < full.size(); ++i) blocks[i] += full[i];
      EXPECT_EQ(BlockCounts(bands, length, block), blocks);
      const SequenceLayout layout{{GoldenPtrrRow(balancer, ranks, b)}};
      EXPECT_EQ(Permutation(layout.rows[0]), c.at("indices")[b].get<std::vector<int64_t>>());
      EXPECT_EQ(InversePermutation(layout.rows[0]), c.at("restore")[b].get<std::vector<int64_t>>());
      EXPECT_EQ(MakeWorkload(layout, layout, {bands}, 1).work,
                c.at("rank_work")[b].get<std::vector<uint64_t>>());
      ++cases;
    }
  }
  EXPECT_GE(cases, 25);
}

TEST(Ptrr, CountsThePairsOfEveryBlock) {
  Random random(1);
  for (int i = 0; i < 300; ++i) {
    const int64_t length = random.Between(1, 60), block = random.Between(1, 12);
    std::vector<Band> bands;
    for (int64_t q = 0; q < length;) {  // disjoint: each has rows of its own
      const int64_t q_end = std::min(length, q + random.Between(1, 20));
      Band band{q, q_end, random.Between(0, 20), random.Between(20, 60)};
      if (random.Chance(0.5)) band.hi = random.Between(-20, 60);
      if (random.Chance(0.5)) band.lo = random.Between(-60, 20);
      band = Normalized(band);
      if (!Empty(band)) bands.push_back(band);
      q = q_end;
    }
    std::vector<uint64_t> pairs((length + block - 1) / block), counts(pairs.size());
    for (size_t b = 0; b < pairs.size(); ++b) {
      std::vector<bool> seen(60);
      for (int64_t q = b * block; q < std::min<int64_t>(length, (b + 1) * block); ++q) {
        for (int64_t k = 0; k < 60; ++k) {
          for (const Band& band : bands) {
            if (!Sees(band, q, k)) continue;
            ++pairs[b];
            seen[k / block] = true;
          }
        }
      }
      counts[b] = std::count(seen.begin(), seen.end(), true);
    }
    ASSERT_EQ(BlockPairs(bands, length, block), pairs) << i;
    ASSERT_EQ(BlockCounts(bands, length, block), counts) << i;
  }
}

std::vector<int64_t> Totals(const RowLayout& row) {
  std::vector<int64_t> totals;
  for (const std::vector<Segment>& segments : row) {
    totals.push_back(0);
    for (const Segment& segment : segments) totals.back() += segment.size();
  }
  return totals;
}

TEST(Ptrr, DealsAnyNumberOfBlocksSoThatTotalsDifferByAtMostOneBlock) {
  Random random(2);
  for (int i = 0; i < 3'000; ++i) {
    const int ranks = static_cast<int>(random.Between(1, 8));
    const int64_t length = random.BetweenByMagnitude(1, 2'000), block = random.Between(1, 64);
    std::vector<uint64_t> work((length + block - 1) / block);
    for (uint64_t& w : work) w = random.Between(0, random.Pick({1, 10, 1'000}));
    const RowLayout row = PtrrRow(work, length, block, ranks);
    std::vector<int64_t> positions = Permutation(row);
    std::sort(positions.begin(), positions.end());
    std::vector<int64_t> all(length);
    std::iota(all.begin(), all.end(), 0);
    ASSERT_EQ(positions, all);
    const std::vector<int64_t> totals = Totals(row);
    const auto [least, most] = std::minmax_element(totals.begin(), totals.end());
    ASSERT_LE(*most - *least, block) << length << " in blocks of " << block << " over " << ranks;
  }
}

TEST(Ptrr, DealsByWeight) {
  const std::vector<uint64_t> work(60, 7);
  const RowLayout row = PtrrRow(work, 600, 10, 3, {1, 2, 3});
  EXPECT_THAT(Totals(row), ElementsAre(100, 200, 300));
  std::vector<uint64_t> slope(64);
  std::iota(slope.begin(), slope.end(), 1);
  const std::vector<std::vector<int64_t>> tasks = PtrrSchedule(slope, 2, {1, 3});
  uint64_t first = 0;
  for (const int64_t task : tasks[0]) first += slope[task];
  EXPECT_EQ(tasks[0].size(), 16u);
  EXPECT_NEAR(first, 64 * 65 / 2 / 4.0, 64 * 65 / 2 * 0.02);
}

TEST(Ptrr, TakesSmallerBlocksForShortSequences) {
  EXPECT_EQ(DefaultPtrrBlock(1 << 20, 8), 128);
  EXPECT_EQ(DefaultPtrrBlock(128 * 16 * 8, 8), 128);
  EXPECT_EQ(DefaultPtrrBlock(4'096, 2), 128);
  EXPECT_EQ(DefaultPtrrBlock(4'096, 7), 32);
  EXPECT_EQ(DefaultPtrrBlock(5, 4), 1);
  EXPECT_EQ(DefaultPtrrBlock(1 << 24, 2), 128);
  EXPECT_EQ(DefaultPtrrBlock(int64_t{1} << 31, 2), 1 << 14);
}

}  // namespace
}  // namespace ringserve::test
