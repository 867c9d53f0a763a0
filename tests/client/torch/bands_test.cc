// Dense masks as bands: exactly what they show, in as few bands as they have.
#include "client/torch/bands.h"

#include <algorithm>
#include <cstdint>
#include <functional>
#include <random>
#include <vector>

#include <gtest/gtest.h>

namespace ringserve {
namespace {

constexpr int64_t kQueries = 37, kKeys = 51;
using Dense = std::vector<uint8_t>;

Dense DenseOf(const std::function<bool(int64_t, int64_t)>& sees) {
  Dense dense;
  for (int64_t i = 0; i < kQueries; ++i)
    for (int64_t j = 0; j < kKeys; ++j) dense.push_back(sees(i, j) ? 1 : 0);
  return dense;
}

std::optional<v1::Mask> Recognise(const Dense& dense, int64_t most = 4096) {
  return RecogniseBands(dense.data(), kQueries, kKeys, kKeys, most);
}

// How often each key is seen: 0 or 1 where the slices are disjoint.
Dense ShownBy(const v1::Mask& mask) {
  if (mask.slices().empty()) return Dense(kQueries * kKeys, 1);
  Dense seen(kQueries * kKeys, 0);
  for (const v1::Slice& slice : mask.slices()) {
    for (int64_t i = slice.q_begin(); i < slice.q_end(); ++i)
      for (int64_t j = slice.k_begin(); j < slice.k_end(); ++j)
        if ((!slice.has_lo() || slice.lo() <= j - i) && (!slice.has_hi() || j - i <= slice.hi()))
          ++seen[i * kKeys + j];
  }
  return seen;
}

TEST(Bands, OfCommonMasksAreFew) {
  const auto document = [](int64_t i) { return i < 10 ? 0 : i < 31 ? 1 : 2; };
  const struct {
    std::function<bool(int64_t, int64_t)> sees;
    int most;
  } cases[] = {
      {[](int64_t, int64_t) { return true; }, 0},
      {[](int64_t i, int64_t j) { return j <= i; }, 1},
      {[](int64_t i, int64_t j) { return j <= i + kKeys - kQueries; }, 1},
      {[](int64_t i, int64_t j) { return j >= i; }, 1},
      {[](int64_t, int64_t j) { return j < 20; }, 1},
      {[](int64_t i, int64_t j) { return j <= i && j >= i - 5; }, 2},
      {[](int64_t i, int64_t j) { return j <= i && (j >= i - 5 || j < 3); }, 4},
      {[](int64_t i, int64_t j) { return j <= i || j < 9; }, 2},
      {[&](int64_t i, int64_t j) { return document(i) == document(j) && j <= i; }, 3},
      {[](int64_t i, int64_t j) { return (i / 8 + j / 8) % 2 == 0; }, 18},
  };
  for (const auto& [sees, most] : cases) {
    const Dense dense = DenseOf(sees);
    const std::optional<v1::Mask> mask = Recognise(dense);
    ASSERT_TRUE(mask.has_value());
    EXPECT_LE(mask->slices_size(), most) << mask->ShortDebugString();
    EXPECT_EQ(ShownBy(*mask), dense) << mask->ShortDebugString();
  }
}

TEST(Bands, ShowExactlyWhatAnyMaskShows) {
  std::mt19937 random(1);
  for (int round = 0; round < 200; ++round) {
    // Few faults in a band, up to noise.
    const int64_t left = random() % 20, right = random() % 20;
    const uint32_t faults = round % 4 == 0 ? 2 : 1 << (random() % 12);
    const Dense dense = DenseOf([&](int64_t i, int64_t j) {
      return (i - left <= j && j <= i + right) != (random() % faults == 1);
    });
    const std::optional<v1::Mask> mask = Recognise(dense);
    ASSERT_TRUE(mask.has_value());
    ASSERT_EQ(ShownBy(*mask), dense) << mask->ShortDebugString();
  }
}

TEST(Bands, AreNotMoreThanAllowedAndNeverNone) {
  const Dense stripes = DenseOf([](int64_t, int64_t j) { return j % 2 == 0; });
  EXPECT_TRUE(Recognise(stripes, 26).has_value());
  EXPECT_FALSE(Recognise(stripes, 25).has_value());
  EXPECT_FALSE(Recognise(Dense(kQueries * kKeys, 0)).has_value());
}

TEST(Bands, OfOneRowForAllQueries) {
  const Dense row = {1, 1, 0, 0, 1, 1, 1, 0};
  const std::optional<v1::Mask> mask = RecogniseBands(row.data(), 5, 8, 0, 10);
  ASSERT_TRUE(mask.has_value());
  ASSERT_EQ(mask->slices_size(), 2);
  EXPECT_EQ(mask->slices(1).q_end(), 5);
  EXPECT_EQ(mask->slices(1).k_begin(), 4);
  EXPECT_EQ(mask->slices(1).k_end(), 7);
}

}  // namespace
}  // namespace ringserve
