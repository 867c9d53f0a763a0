#include "server/plan/mask.h"

#include <functional>
#include <string>
#include <tuple>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/plan/visible_pairs.h"
#include "tests/support/random_case.h"

namespace ringserve::test {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

v1::AttentionSpec Spec(int64_t batch, int64_t q_len, int64_t kv_len) {
  v1::AttentionSpec spec;
  spec.set_batch(batch);
  spec.set_q_len(q_len);
  spec.set_kv_len(kv_len);
  return spec;
}

TEST(Masks, ShowWhatTheirDefinitionSays) {
  for (int seed = 0; seed < 500; ++seed) {
    const Case c = RandomCase(seed, 4, 40);
    SCOPED_TRACE(c.ToString());
    const auto bands = CompileMasks(c.spec);
    ASSERT_TRUE(bands.ok()) << bands.status();
    const Sees sees = MaskOf(c.spec);
    ASSERT_TRUE(bands->size() == 1 || static_cast<int64_t>(bands->size()) == c.spec.batch());
    for (int64_t b = 0; b < c.spec.batch(); ++b) {
      const std::vector<Band>& row = (*bands)[bands->size() == 1 ? 0 : b];
      ASSERT_EQ(PairsOf(c.spec, row), PairsOf(c.spec, sees, b)) << "batch row " << b;
    }
  }
}

TEST(Masks, AreNormalizedSortedAndNeverEmpty) {
  for (int seed = 0; seed < 500; ++seed) {
    const Case c = RandomCase(seed, 4, 1000);
    const auto bands = CompileMasks(c.spec);
    ASSERT_TRUE(bands.ok()) << bands.status();
    for (const std::vector<Band>& row : *bands) {
      for (const Band& band : row) {
        EXPECT_EQ(Normalized(band), band) << c.ToString();
        EXPECT_FALSE(Empty(band)) << c.ToString();
      }
      EXPECT_TRUE(std::is_sorted(row.begin(), row.end(), [](const Band& a, const Band& b) {
        return std::tie(a.q_begin, a.k_begin) < std::tie(b.q_begin, b.k_begin);
      }));
    }
  }
}

TEST(Masks, ThatAreAllTheSameAreOne) {
  v1::AttentionSpec spec = Spec(3, 8, 8);
  for (int b = 0; b < 3; ++b) spec.add_masks()->set_causal(true);
  EXPECT_EQ(CompileMasks(spec)->size(), 1u);
  spec.mutable_masks(1)->set_bottom_right(true);  // the same where both lengths are
  EXPECT_EQ(CompileMasks(spec)->size(), 1u);
  spec.mutable_masks(1)->set_q_offset(1);
  EXPECT_EQ(CompileMasks(spec)->size(), 3u);
}

TEST(Masks, ThatShowNothingHaveNoBands) {
  v1::AttentionSpec spec = Spec(1, 8, 8);
  spec.add_masks()->set_causal(true);
  spec.mutable_masks(0)->set_q_offset(-8);
  EXPECT_THAT((*CompileMasks(spec))[0], IsEmpty());
}

TEST(Masks, TakeOffsetsAsFarAsTheyAreValid) {
  v1::AttentionSpec spec = Spec(1, 2'147'483'647, 2'147'483'647);
  spec.add_masks()->set_causal(true);
  spec.mutable_masks(0)->set_q_offset(int64_t{1} << 40);
  EXPECT_TRUE(IsFull((*CompileMasks(spec))[0][0]));
  spec.mutable_masks(0)->set_q_offset(-(int64_t{1} << 40));
  EXPECT_THAT((*CompileMasks(spec))[0], IsEmpty());
}

TEST(Masks, RefuseByNameWhatIsNotServed) {
  const std::pair<const char*, std::function<void(v1::Mask&)>> fields[] = {
      {"window", [](v1::Mask& mask) { mask.mutable_window(); }},
      {"sinks", [](v1::Mask& mask) { mask.set_sinks(1); }},
      {"prefix", [](v1::Mask& mask) { mask.set_prefix(1); }},
      {"documents", [](v1::Mask& mask) { mask.mutable_documents(); }},
      {"blocks", [](v1::Mask& mask) { mask.mutable_blocks(); }},
      {"slices", [](v1::Mask& mask) { mask.add_slices(); }},
  };
  for (const auto& [field, set] : fields) {
    v1::AttentionSpec spec = Spec(2, 8, 8);
    spec.add_masks();
    set(*spec.add_masks());
    const absl::Status status = CompileMasks(spec).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented) << field;
    EXPECT_THAT(std::string(status.message()), HasSubstr(std::string("masks[1].") + field));
  }
}

TEST(Masks, AreDescribedInWords) {
  v1::AttentionSpec spec = Spec(2, 8, 10);
  EXPECT_EQ(DescribeMasks(spec), "full");
  v1::Mask* mask = spec.add_masks();
  EXPECT_EQ(DescribeMasks(spec), "full");
  mask->set_causal(true);
  EXPECT_EQ(DescribeMasks(spec), "causal");
  mask->set_q_offset(5);
  EXPECT_EQ(DescribeMasks(spec), "causal, q_offset 5");
  mask->set_bottom_right(true);
  EXPECT_EQ(DescribeMasks(spec), "causal, bottom-right");
  spec.add_masks();
  EXPECT_EQ(DescribeMasks(spec), "2 masks, one per batch row");
}

}  // namespace
}  // namespace ringserve::test
