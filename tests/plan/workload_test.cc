// Work, lockstep and needs, counted pair by pair.
#include "server/plan/workload.h"

#include <algorithm>
#include <numeric>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "server/plan/mask.h"
#include "tests/plan/visible_pairs.h"
#include "tests/support/random.h"
#include "tests/support/random_case.h"

namespace ringserve::test {
namespace {

struct Setting {
  Case c;
  SequenceLayout q, kv;
  std::vector<std::vector<Band>> bands;
};

SequenceLayout RandomLayout(Random& random, int64_t length, int ranks) {
  return random.Chance(0.5) ? HeadTailLayout(length, ranks) : EvenLayout(length, ranks);
}

// Every kind of sharing: layouts and bands for all batch rows, or one for each.
Setting RandomSetting(uint64_t seed) {
  Random random(seed);
  Setting setting;
  setting.c = RandomCase(seed, 8, 40);
  const v1::AttentionSpec& spec = setting.c.spec;
  const int ranks = static_cast<int>(random.Between(1, 8));
  setting.bands = *CompileMasks(spec);
  setting.q = RandomLayout(random, spec.q_len(), ranks);
  setting.kv = RandomLayout(random, spec.kv_len(), ranks);
  if (random.Chance(0.4)) {
    for (int64_t b = 1; b < spec.batch(); ++b) {
      setting.q.rows.push_back(RandomLayout(random, spec.q_len(), ranks).rows[0]);
      setting.kv.rows.push_back(RandomLayout(random, spec.kv_len(), ranks).rows[0]);
    }
  }
  return setting;
}

std::vector<int> OwnersOf(const RowLayout& row, int64_t length) {
  std::vector<int> owners(length);
  for (int rank = 0; rank < static_cast<int>(row.size()); ++rank) {
    for (const int64_t position : PositionsOf(row, rank)) owners[position] = rank;
  }
  return owners;
}

// [rank][owner]: visible pairs of rank's queries and owner's keys.
std::vector<std::vector<uint64_t>> PairWork(const Setting& setting) {
  const v1::AttentionSpec& spec = setting.c.spec;
  const Sees sees = MaskOf(spec);
  std::vector<std::vector<uint64_t>> work(setting.q.ranks(),
                                          std::vector<uint64_t>(setting.q.ranks()));
  for (int64_t b = 0; b < spec.batch(); ++b) {
    const std::vector<int> q = OwnersOf(setting.q.row(b), spec.q_len());
    const std::vector<int> kv = OwnersOf(setting.kv.row(b), spec.kv_len());
    for (int64_t i = 0; i < spec.q_len(); ++i) {
      for (int64_t j = 0; j < spec.kv_len(); ++j) work[q[i]][kv[j]] += sees(b, i, j);
    }
  }
  return work;
}

TEST(Workload, IsWhatCountingPairsGives) {
  for (int seed = 0; seed < 1'000; ++seed) {
    const Setting setting = RandomSetting(seed);
    SCOPED_TRACE(setting.c.ToString());
    const Workload workload =
        MakeWorkload(setting.q, setting.kv, setting.bands, setting.c.spec.batch());
    const int ranks = setting.q.ranks();
    const std::vector<std::vector<uint64_t>> pairs = PairWork(setting);
    std::vector<uint64_t> work(ranks), lockstep(ranks);
    std::vector<int> reach(ranks);
    for (int rank = 0; rank < ranks; ++rank) {
      for (int owner = 0; owner < ranks; ++owner) {
        const int step = (rank - owner + ranks) % ranks;
        work[rank] += pairs[rank][owner];
        lockstep[step] = std::max(lockstep[step], pairs[rank][owner]);
        ASSERT_EQ(workload.Needs(rank, owner), pairs[rank][owner] > 0) << rank << " " << owner;
        if (pairs[rank][owner] > 0) reach[owner] = std::max(reach[owner], step);
      }
    }
    ASSERT_EQ(workload.work, work);
    ASSERT_EQ(workload.lockstep, lockstep);
    ASSERT_EQ(workload.reach, reach);
    ASSERT_FALSE(workload.lockstep_is_bound);
    ASSERT_EQ(workload.lockstep_total,
              std::accumulate(lockstep.begin(), lockstep.end(), uint64_t{0}));
  }
}

// Pass-Q: rank's keys, owner's queries.
TEST(Workload, OfTravellingQueriesIsWhatCountingPairsGives) {
  for (int seed = 0; seed < 1'000; ++seed) {
    const Setting setting = RandomSetting(seed);
    SCOPED_TRACE(setting.c.ToString());
    const Workload workload =
        MakePassQWorkload(setting.q, setting.kv, setting.bands, setting.c.spec.batch());
    const int ranks = setting.q.ranks();
    const std::vector<std::vector<uint64_t>> pairs = PairWork(setting);
    std::vector<uint64_t> work(ranks), lockstep(ranks);
    std::vector<int> reach(ranks);
    for (int rank = 0; rank < ranks; ++rank) {
      for (int owner = 0; owner < ranks; ++owner) {
        const int step = (rank - owner + ranks) % ranks;
        work[rank] += pairs[owner][rank];
        lockstep[step] = std::max(lockstep[step], pairs[owner][rank]);
        ASSERT_EQ(workload.Needs(rank, owner), pairs[owner][rank] > 0) << rank << " " << owner;
        if (pairs[owner][rank] > 0) reach[owner] = std::max(reach[owner], step);
      }
    }
    ASSERT_EQ(workload.work, work);
    ASSERT_EQ(workload.lockstep, lockstep);
    ASSERT_EQ(workload.reach, reach);
  }
}

TEST(Workload, OfTooManyPiecePairsIsABoundThatHolds) {
  v1::AttentionSpec spec;
  spec.set_batch(1);
  spec.set_q_len(100'000);
  spec.set_kv_len(100'000);
  spec.add_masks()->set_causal(true);
  const auto bands = *CompileMasks(spec);
  // One segment for each position: 10^4 x 10^4 / 2 pairs of segments.
  SequenceLayout fine{{RowLayout(2)}};
  for (int64_t p = 0; p < 100'000; p += 10) {
    fine.rows[0][(p / 10) % 2].push_back({p, p + 10});
  }
  const Workload workload = MakeWorkload(fine, fine, bands, 1);
  EXPECT_GT(workload.piece_pairs, kMostPiecePairs);
  EXPECT_TRUE(workload.lockstep_is_bound);
  const uint64_t total = uint64_t{100'000} * 100'001 / 2;
  EXPECT_EQ(workload.work[0] + workload.work[1], total);
  EXPECT_GT(MakePassQWorkload(fine, fine, bands, 1, {}, {}, 1'000).pieces, 1'000);
  // Exactly: both ranks have half the work, and half of that with each other's keys.
  EXPECT_GE(workload.lockstep_total, total / 2);
  EXPECT_LE(workload.lockstep_total, total);
}

TEST(Workload, FindsWhoNeedsWhomInLessTimeThanPiecePairsTake) {
  v1::AttentionSpec spec;
  spec.set_batch(1);
  spec.set_q_len(100'000);
  spec.set_kv_len(100'000);
  const auto bands = *CompileMasks(spec);
  SequenceLayout fine{{RowLayout(2)}};
  for (int64_t p = 0; p < 100'000; ++p) fine.rows[0][p % 2].push_back({p, p + 1});
  const Workload workload = MakeWorkload(fine, fine, bands, 1);  // 10^10 pairs
  EXPECT_TRUE(workload.Needs(0, 1) && workload.Needs(1, 0) && workload.Needs(1, 1));
}

}  // namespace
}  // namespace ringserve::test
