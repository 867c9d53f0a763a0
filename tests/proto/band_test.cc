// Band arithmetic against counting pairs one by one.
#include "proto/band.h"

#include <algorithm>

#include <gtest/gtest.h>

#include "tests/support/random.h"

namespace ringserve {
namespace {

constexpr int kCases = 4'000;
constexpr int64_t kReach = 12;  // coordinates of random bands lie within [-kReach, kReach]
constexpr int64_t kFar = int64_t{1} << 41;

Band RandomBand(test::Random& random) {
  Band band;
  const auto range = [&](int64_t& begin, int64_t& end) {
    begin = random.Between(-kReach, kReach);
    end = random.Between(begin - 1, kReach);  // empty and reversed ranges, too
  };
  range(band.q_begin, band.q_end);
  range(band.k_begin, band.k_end);
  if (random.Chance(0.7)) band.lo = random.Between(-2 * kReach, 2 * kReach);
  if (random.Chance(0.7)) band.hi = random.Between(-2 * kReach, 2 * kReach);
  return band;
}

// By the definition in band.h.
bool SeesByDefinition(const Band& band, int64_t q, int64_t k) {
  return band.q_begin <= q && q < band.q_end && band.k_begin <= k && k < band.k_end &&
         (band.lo == Band::kUnboundedLo || k - q >= band.lo) &&
         (band.hi == Band::kUnboundedHi || k - q <= band.hi);
}

template <typename Visit>
void ForEachPair(const Visit& visit) {
  for (int64_t q = -kReach - 1; q <= kReach + 1; ++q) {
    for (int64_t k = -kReach - 1; k <= kReach + 1; ++k) visit(q, k);
  }
}

uint64_t Count(const Band& band) {
  uint64_t count = 0;
  ForEachPair([&](int64_t q, int64_t k) { count += SeesByDefinition(band, q, k); });
  return count;
}

TEST(Band, SeesWhatItsDefinitionSays) {
  test::Random random(1);
  for (int i = 0; i < kCases / 4; ++i) {
    const Band band = RandomBand(random);
    ForEachPair([&](int64_t q, int64_t k) {
      ASSERT_EQ(Sees(band, q, k), SeesByDefinition(band, q, k)) << ToString(band) << q << "," << k;
    });
  }
}

TEST(Band, AreaCountsItsPairs) {
  test::Random random(2);
  for (int i = 0; i < kCases; ++i) {
    const Band band = RandomBand(random);
    ASSERT_EQ(Area(band), Count(band)) << ToString(band);
    ASSERT_EQ(Empty(band), Count(band) == 0) << ToString(band);
  }
}

TEST(Band, NormalizedSeesTheSamePairsInTheSmallestBox) {
  test::Random random(3);
  for (int i = 0; i < kCases; ++i) {
    const Band band = RandomBand(random);
    const Band normalized = Normalized(band);
    if (Count(band) == 0) {
      ASSERT_EQ(normalized, Band{}) << ToString(band);
      continue;
    }
    int64_t q_min = kFar, q_max = -kFar, k_min = kFar, k_max = -kFar;
    ForEachPair([&](int64_t q, int64_t k) {
      ASSERT_EQ(Sees(normalized, q, k), SeesByDefinition(band, q, k)) << ToString(band);
      if (!Sees(normalized, q, k)) return;
      q_min = std::min(q_min, q), q_max = std::max(q_max, q);
      k_min = std::min(k_min, k), k_max = std::max(k_max, k);
    });
    ASSERT_EQ(normalized.q_begin, q_min) << ToString(band);
    ASSERT_EQ(normalized.q_end, q_max + 1) << ToString(band);
    ASSERT_EQ(normalized.k_begin, k_min) << ToString(band);
    ASSERT_EQ(normalized.k_end, k_max + 1) << ToString(band);
    ASSERT_EQ(Normalized(normalized), normalized) << ToString(band);
  }
}

TEST(Band, NormalizedKeepsADiagonalOnlyWhereItCuts) {
  test::Random random(4);
  int full = 0;
  for (int i = 0; i < kCases; ++i) {
    const Band band = Normalized(RandomBand(random));
    const auto without = [&](int64_t Band::*diagonal, int64_t unbounded) {
      Band open = band;
      open.*diagonal = unbounded;
      return Count(open);
    };
    if (band.lo != Band::kUnboundedLo) {
      ASSERT_GT(without(&Band::lo, Band::kUnboundedLo), Count(band)) << ToString(band);
    }
    if (band.hi != Band::kUnboundedHi) {
      ASSERT_GT(without(&Band::hi, Band::kUnboundedHi), Count(band)) << ToString(band);
    }
    const uint64_t box =
        static_cast<uint64_t>(band.q_end - band.q_begin) * (band.k_end - band.k_begin);
    ASSERT_EQ(IsFull(band), box > 0 && Count(band) == box) << ToString(band);
    full += IsFull(band);
  }
  EXPECT_GT(full, kCases / 50);
}

TEST(Band, CutSeesThePairsOfBothTheBandAndTheRectangle) {
  test::Random random(5);
  for (int i = 0; i < kCases; ++i) {
    const Band band = RandomBand(random);
    const Band box = RandomBand(random);
    const Band cut = Cut(band, box.q_begin, box.q_end, box.k_begin, box.k_end);
    ASSERT_EQ(cut, Normalized(cut)) << ToString(band);
    ForEachPair([&](int64_t q, int64_t k) {
      const bool inside = box.q_begin <= q && q < box.q_end && box.k_begin <= k && k < box.k_end;
      ASSERT_EQ(Sees(cut, q, k), inside && SeesByDefinition(band, q, k))
          << ToString(band) << " cut by " << ToString(box);
    });
  }
}

TEST(Band, CutIntoTilesItLosesNoPairAndRepeatsNone) {
  test::Random random(6);
  for (int i = 0; i < kCases / 4; ++i) {
    const Band band = RandomBand(random);
    const int64_t q_split = random.Between(-kReach, kReach);
    const int64_t k_split = random.Between(-kReach, kReach);
    uint64_t sum = 0;
    for (const auto& [q_begin, q_end] : {std::pair{-kFar, q_split}, std::pair{q_split, kFar}}) {
      for (const auto& [k_begin, k_end] : {std::pair{-kFar, k_split}, std::pair{k_split, kFar}})
        sum += Area(Cut(band, q_begin, q_end, k_begin, k_end));
    }
    ASSERT_EQ(sum, Area(band)) << ToString(band);
  }
}

TEST(Band, ShiftedSeesTheSamePairsElsewhere) {
  test::Random random(7);
  for (int i = 0; i < kCases / 4; ++i) {
    const Band band = RandomBand(random);
    const int64_t dq = random.Between(-kFar / 2, kFar / 2);
    const int64_t dk = random.Between(-kFar / 2, kFar / 2);
    const Band shifted = Shifted(band, dq, dk);
    ForEachPair([&](int64_t q, int64_t k) {
      ASSERT_EQ(Sees(shifted, q + dq, k + dk), SeesByDefinition(band, q, k))
          << ToString(band) << " by " << dq << ", " << dk;
    });
    ASSERT_EQ(Area(shifted), Area(band));
    ASSERT_EQ(Shifted(shifted, -dq, -dk), band);
  }
}

TEST(Band, AreasOfTheLargestSequencesAreExact) {
  constexpr int64_t kLongest = (int64_t{1} << 31) - 1;
  constexpr uint64_t kSquare = static_cast<uint64_t>(kLongest) * kLongest;
  EXPECT_EQ(Area({.q_end = kLongest, .k_end = kLongest}), kSquare);
  const Band causal = {.q_end = kLongest, .k_end = kLongest, .hi = 0};
  EXPECT_EQ(Area(causal), (kSquare + kLongest) / 2);
  EXPECT_EQ(Area(Shifted(causal, kFar, -kFar)), (kSquare + kLongest) / 2);
  // A window of three along the whole diagonal: two rows see one pair less.
  EXPECT_EQ(Area({.q_end = kLongest, .k_end = kLongest, .lo = -1, .hi = 1}),
            3 * static_cast<uint64_t>(kLongest) - 2);
  // Offsets that hide all, or nothing.
  EXPECT_EQ(Area({.q_end = kLongest, .k_end = kLongest, .hi = -(int64_t{1} << 40)}), 0u);
  EXPECT_EQ(Area({.q_end = kLongest, .k_end = kLongest, .hi = int64_t{1} << 40}), kSquare);
}

TEST(Band, PrintsItself) {
  EXPECT_EQ(ToString({.q_end = 8, .k_end = 8, .hi = 0}), "q[0,8) k[0,8) -inf<=k-q<=0");
  EXPECT_EQ(ToString({.q_begin = 1, .q_end = 2, .k_begin = 3, .k_end = 4, .lo = -5}),
            "q[1,2) k[3,4) -5<=k-q<=inf");
}

}  // namespace
}  // namespace ringserve
