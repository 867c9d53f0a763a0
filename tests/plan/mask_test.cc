// The mask compiler against the oracle's reading of the same masks, pair by pair.
#include "server/plan/mask.h"

#include <algorithm>
#include <string>
#include <tuple>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "proto/validate.h"
#include "tests/plan/one_head_spec.h"
#include "tests/plan/visible_pairs.h"
#include "tests/support/random_mask.h"

namespace ringserve::test {
namespace {

using ::testing::IsEmpty;

// One batch row, or up to four with masks of their own.
v1::AttentionSpec RandomSpec(uint64_t seed, int64_t most_rows) {
  Random random(seed);
  const auto length = [&] { return random.Between(1, random.Pick<int64_t>({4, 12, most_rows})); };
  const int64_t q_len = length();
  v1::AttentionSpec spec =
      OneHeadSpec(random.Pick({1, 1, 1, 4}), q_len, random.Chance(0.4) ? q_len : length());
  for (int64_t b = 0; b < spec.batch(); ++b)
    *spec.add_masks() = RandomMask(random, spec.q_len(), spec.kv_len());
  return spec;
}

constexpr int kMasks = 10'000;

// Each pair is in one band or in none, as the oracle says: disjointness, visibility and, summed up,
// the area.
TEST(Masks, ShowWhatTheirDefinitionSaysEachPairOnce) {
  for (int seed = 0; seed < kMasks; ++seed) {
    const v1::AttentionSpec spec = RandomSpec(seed, 40);
    SCOPED_TRACE(spec.ShortDebugString());
    ASSERT_EQ(ValidateSpec(spec), absl::OkStatus()) << "seed " << seed;
    const auto bands = CompileMasks(spec);
    ASSERT_TRUE(bands.ok()) << bands.status();
    const Sees sees = MaskOf(spec);
    ASSERT_TRUE(bands->size() == 1 || static_cast<int64_t>(bands->size()) == spec.batch());
    for (int64_t b = 0; b < spec.batch(); ++b) {
      const std::vector<Band>& row = (*bands)[bands->size() == 1 ? 0 : b];
      ASSERT_EQ(PairsOf(spec, row), PairsOf(spec, sees, b)) << "seed " << seed << " row " << b;
    }
  }
}

TEST(Masks, HaveTheAreaOfTheirVisiblePairs) {
  for (int seed = 0; seed < kMasks; ++seed) {
    const v1::AttentionSpec spec = RandomSpec(seed, 40);
    const auto bands = CompileMasks(spec);
    ASSERT_TRUE(bands.ok()) << bands.status();
    const Sees sees = MaskOf(spec);
    for (size_t b = 0; b < bands->size(); ++b) {
      uint64_t area = 0, visible = 0;
      for (const Band& band : (*bands)[b]) area += Area(band);
      for (int64_t q = 0; q < spec.q_len(); ++q) {
        for (int64_t k = 0; k < spec.kv_len(); ++k) visible += sees(b, q, k);
      }
      ASSERT_EQ(area, visible) << "seed " << seed << " " << spec.ShortDebugString();
    }
  }
}

TEST(Masks, AreNormalizedSortedAndNeverEmpty) {
  for (int seed = 0; seed < 2'000; ++seed) {
    const v1::AttentionSpec spec = RandomSpec(seed, 1'000);
    const auto bands = CompileMasks(spec);
    ASSERT_TRUE(bands.ok()) << bands.status();
    for (const std::vector<Band>& row : *bands) {
      for (const Band& band : row) {
        EXPECT_EQ(Normalized(band), band) << spec.ShortDebugString();
        EXPECT_FALSE(Empty(band)) << spec.ShortDebugString();
      }
      EXPECT_TRUE(std::is_sorted(row.begin(), row.end(), [](const Band& a, const Band& b) {
        return std::tie(a.q_begin, a.k_begin) < std::tie(b.q_begin, b.k_begin);
      }));
    }
  }
}

TEST(Masks, ThatAreAllTheSameAreOne) {
  v1::AttentionSpec spec = OneHeadSpec(3, 8, 8);
  for (int b = 0; b < 3; ++b) spec.add_masks()->set_causal(true);
  EXPECT_EQ(CompileMasks(spec)->size(), 1u);
  spec.mutable_masks(1)->set_bottom_right(true);  // the same where both lengths are
  EXPECT_EQ(CompileMasks(spec)->size(), 1u);
  for (const int other : {0, 1, 2}) {
    v1::AttentionSpec differing = spec;
    differing.mutable_masks(other)->set_q_offset(1);
    const auto bands = *CompileMasks(differing);
    ASSERT_EQ(bands.size(), 3u);
    for (int b = 0; b < 3; ++b) EXPECT_EQ(bands[b][0].q_begin == 0 && IsFull(bands[b][0]), false);
    EXPECT_NE(bands[other], bands[(other + 1) % 3]);
    EXPECT_EQ(bands[(other + 1) % 3], bands[(other + 2) % 3]);
  }
}

TEST(Masks, ThatShowNothingHaveNoBands) {
  v1::AttentionSpec spec = OneHeadSpec(1, 8, 8);
  spec.add_masks()->set_causal(true);
  spec.mutable_masks(0)->set_q_offset(-8);
  EXPECT_THAT((*CompileMasks(spec))[0], IsEmpty());
}

TEST(Masks, AreDescribedInWords) {
  v1::AttentionSpec spec = OneHeadSpec(2, 8, 10);
  EXPECT_EQ(DescribeMasks(spec), "full");
  v1::Mask* mask = spec.add_masks();
  EXPECT_EQ(DescribeMasks(spec), "full");
  mask->set_causal(true);
  EXPECT_EQ(DescribeMasks(spec), "causal");
  mask->set_q_offset(5);
  EXPECT_EQ(DescribeMasks(spec), "causal, q_offset 5");
  mask->set_bottom_right(true);
  EXPECT_EQ(DescribeMasks(spec), "causal, bottom-right");
  mask->mutable_window()->set_left(3);
  mask->set_sinks(2);
  mask->set_prefix(4);
  for (int i = 0; i < 3; ++i) mask->mutable_documents()->add_q_lengths(2);
  EXPECT_EQ(DescribeMasks(spec),
            "causal, bottom-right, window 3 left, all right, 2 sinks, prefix 4, 3 documents");
  spec.add_masks();
  EXPECT_EQ(DescribeMasks(spec), "2 masks, one per batch row");
  spec.clear_masks();
  mask = spec.add_masks();
  mask->mutable_blocks()->set_q_block(4);
  mask->mutable_blocks()->set_kv_block(5);
  mask->add_slices();
  EXPECT_EQ(DescribeMasks(spec), "blocks of 4 x 5, 1 slices");
}

}  // namespace
}  // namespace ringserve::test
