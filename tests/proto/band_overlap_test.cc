#include "proto/band_overlap.h"

#include <vector>

#include <gtest/gtest.h>

namespace ringserve {
namespace {

// SplitMix64 (Steele, Lea & Flood, 2014).
struct Numbers {
  uint64_t state;
  int64_t Below(int64_t limit) {
    uint64_t z = state += 0x9E3779B97F4A7C15;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
    return static_cast<int64_t>((z ^ (z >> 31)) % static_cast<uint64_t>(limit));
  }
};

std::vector<Band> RandomBands(Numbers& numbers) {
  constexpr int64_t kRows = 14;
  std::vector<Band> bands(numbers.Below(7));
  for (Band& band : bands) {
    band = {.q_begin = numbers.Below(kRows), .k_begin = numbers.Below(kRows)};
    band.q_end = band.q_begin + numbers.Below(kRows - band.q_begin + 1);
    band.k_end = band.k_begin + numbers.Below(kRows - band.k_begin + 1);
    const int64_t diagonal = numbers.Below(2 * kRows) - kRows;
    if (numbers.Below(2) == 0) band.lo = diagonal;
    if (numbers.Below(2) == 0) band.hi = diagonal + numbers.Below(4);
  }
  return bands;
}

bool AnyPairTwice(const std::vector<Band>& bands) {
  for (int64_t q = 0; q < 14; ++q) {
    for (int64_t k = 0; k < 14; ++k) {
      int count = 0;
      for (const Band& band : bands) count += Sees(band, q, k);
      if (count > 1) return true;
    }
  }
  return false;
}

TEST(BandOverlap, IsFoundWhereAPairIsShownTwiceAndNowhereElse) {
  Numbers numbers{1};
  int disjoint = 0, overlapping = 0;
  for (int i = 0; i < 200'000; ++i) {
    const std::vector<Band> bands = RandomBands(numbers);
    const std::optional<BandOverlap> overlap = FindOverlap(bands);
    ASSERT_EQ(overlap.has_value(), AnyPairTwice(bands)) << "case " << i;
    ++(overlap ? overlapping : disjoint);
    if (!overlap) continue;
    ASSERT_LT(overlap->first, overlap->second);
    ASSERT_TRUE(Sees(bands.at(overlap->first), overlap->q, overlap->k)) << "case " << i;
    ASSERT_TRUE(Sees(bands.at(overlap->second), overlap->q, overlap->k)) << "case " << i;
  }
  EXPECT_GT(disjoint, 20'000);
  EXPECT_GT(overlapping, 20'000);
}

TEST(BandOverlap, OfManyBandsIsFound) {
  // Every box is the same: only the order of the diagonals tells these bands apart.
  constexpr int64_t kBands = 100'000;
  std::vector<Band> bands;
  for (int64_t i = 0; i < kBands; ++i) {
    bands.push_back({.q_end = kBands, .k_end = kBands, .lo = i - kBands / 2, .hi = i - kBands / 2});
  }
  EXPECT_FALSE(FindOverlap(bands).has_value());
  bands.push_back({.q_begin = 70'000, .q_end = 70'001, .k_begin = 70'000, .k_end = 70'001});
  const std::optional<BandOverlap> overlap = FindOverlap(bands);
  ASSERT_TRUE(overlap.has_value());
  EXPECT_EQ(overlap->first, static_cast<size_t>(kBands / 2));
  EXPECT_EQ(overlap->second, static_cast<size_t>(kBands));
  EXPECT_EQ(overlap->q, 70'000);
  EXPECT_EQ(overlap->k, 70'000);
}

}  // namespace
}  // namespace ringserve
