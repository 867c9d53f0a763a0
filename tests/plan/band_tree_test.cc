#include "server/plan/band_tree.h"

#include <algorithm>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/random.h"

namespace ringserve::test {
namespace {

Band RandomBand(Random& random, int64_t rows) {
  for (;;) {
    Band band{.q_begin = random.Between(0, rows - 1), .k_begin = random.Between(0, rows - 1)};
    band.q_end = random.Between(band.q_begin + 1, rows);
    band.k_end = random.Between(band.k_begin + 1, rows);
    if (random.Chance(0.4)) band.lo = random.Between(-rows, rows);
    if (random.Chance(0.4)) band.hi = random.Between(-rows, rows);
    band = Normalized(band);
    if (!Empty(band)) return band;
  }
}

TEST(BandTree, FindsEveryBandThatSharesAPairEachOnce) {
  Random random(1);
  for (int i = 0; i < 500; ++i) {
    std::vector<Band> bands;
    for (int64_t n = random.Between(0, 60); n > 0; --n) bands.push_back(RandomBand(random, 50));
    const BandTree tree(bands);
    for (int j = 0; j < 20; ++j) {
      const Band probe = RandomBand(random, 50);
      std::vector<const Band*> near;
      tree.ForEachNear(probe, [&](const Band& band) { near.push_back(&band); });
      for (const Band& band : bands) {
        const int64_t found = std::count(near.begin(), near.end(), &band);
        ASSERT_LE(found, 1) << ToString(band);
        if (!Empty(Intersection(band, probe))) {
          ASSERT_EQ(found, 1) << ToString(band);
        }
      }
    }
  }
}

TEST(BandTree, LooksAtFewOfManyBands) {
  std::vector<Band> bands;  // along the diagonal; beside it; one that spans everything
  for (int64_t i = 0; i < 10'000; ++i) {
    bands.push_back({.q_begin = i, .q_end = i + 1, .k_begin = i, .k_end = i + 1});
    bands.push_back(Normalized({.q_end = 30'000, .k_end = 30'000, .lo = i + 1, .hi = i + 1}));
  }
  bands.push_back({.q_end = 10'000, .k_begin = 40'000, .k_end = 40'001});
  std::sort(bands.begin(), bands.end(), [](const Band& a, const Band& b) {
    return std::pair(a.q_begin, a.k_begin) < std::pair(b.q_begin, b.k_begin);
  });
  const BandTree tree(bands);
  int found = 0;
  const int64_t looked_at =
      tree.ForEachNear({.q_begin = 5'000, .q_end = 5'001, .k_begin = 5'000, .k_end = 5'003},
                       [&](const Band&) { ++found; });
  EXPECT_EQ(found, 3);
  EXPECT_LT(looked_at, 1'000);
}

TEST(BandTree, OfNothingFindsNothing) {
  const BandTree tree({});
  EXPECT_EQ(tree.ForEachNear({.q_end = 1, .k_end = 1}, [](const Band&) { FAIL(); }), 0);
}

}  // namespace
}  // namespace ringserve::test
