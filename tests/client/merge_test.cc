// Partials over ranges of keys, merged, against attention over all of them in fp64.
#include "ringserve/merge.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/oracle.h"

namespace ringserve {
namespace {

using ::testing::AllOf;
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsNan;

template <typename T>
constexpr T kNothing = -std::numeric_limits<T>::infinity();

template <typename T>
struct Partial {
  std::vector<T> out, lse;

  absl::Status Take(const PartialShape& shape, const Partial& part) {
    return MergePartials(shape, {out, lse}, {part.out, part.lse});
  }
};

v1::AttentionSpec Spec(v1::TensorLayout layout) {
  v1::AttentionSpec spec;
  spec.set_batch(2);
  spec.set_q_heads(3);
  spec.set_kv_heads(1);
  spec.set_q_len(7);
  spec.set_kv_len(40);
  spec.set_head_dim(8);
  spec.set_value_dim(5);
  spec.set_dtype(v1::DTYPE_F64);
  spec.set_tensor_layout(layout);
  return spec;
}

PartialShape ShapeOf(const v1::AttentionSpec& spec) {
  return {.batch = spec.batch(),
          .heads = spec.q_heads(),
          .queries = spec.q_len(),
          .value_dim = spec.value_dim(),
          .layout = spec.tensor_layout()};
}

// What causal attention over the keys [begin, end) gives; query 0 sits on key 10.
template <typename T>
Partial<T> Over(const v1::AttentionSpec& spec, int64_t begin, int64_t end, double gain) {
  const test::Reference right = test::Attend(spec, test::RandomInputs(spec, 1, gain),
                                             [&](int64_t /*batch_row*/, int64_t q, int64_t k) {
                                               return begin <= k && k < end && k <= q + 10;
                                             });
  return {{right.out.begin(), right.out.end()}, {right.lse.begin(), right.lse.end()}};
}

template <typename T>
void ExpectNear(const Partial<T>& merged, const Partial<T>& right) {
  const double tolerance = sizeof(T) == 8 ? 1e-14 : 1e-6;
  for (size_t i = 0; i < right.out.size(); ++i)
    ASSERT_NEAR(merged.out[i], right.out[i],
                tolerance * std::max(1.0, std::abs(double{right.out[i]})))
        << i;
  for (size_t i = 0; i < right.lse.size(); ++i)
    ASSERT_NEAR(merged.lse[i], right.lse[i],
                tolerance * std::max(1.0, std::abs(double{right.lse[i]})))
        << i;
}

template <typename T>
class MergeOf : public ::testing::Test {};
using Types = ::testing::Types<float, double>;
TYPED_TEST_SUITE(MergeOf, Types);

TYPED_TEST(MergeOf, SplitKeysIsAttentionOverAllOfThem) {
  for (const auto layout : {v1::TENSOR_LAYOUT_BHSD, v1::TENSOR_LAYOUT_BSHD}) {
    const v1::AttentionSpec spec = Spec(layout);
    for (const double gain : {1.0, 30.0}) {
      // The last range is seen by no query, the one before by some.
      Partial<TypeParam> merged = Over<TypeParam>(spec, 0, 3, gain);
      for (const auto& [begin, end] : {std::pair{3, 4}, {4, 12}, {12, 17}, {17, 40}})
        ASSERT_TRUE(merged.Take(ShapeOf(spec), Over<TypeParam>(spec, begin, end, gain)).ok());
      ExpectNear(merged, Over<TypeParam>(spec, 0, 40, gain));
    }
  }
}

TYPED_TEST(MergeOf, PartsDoesNotDependOnTheirOrderBeyondRounding) {
  const v1::AttentionSpec spec = Spec(v1::TENSOR_LAYOUT_BSHD);
  std::vector<Partial<TypeParam>> parts;
  for (int64_t begin = 0; begin < 20; begin += 4)
    parts.push_back(Over<TypeParam>(spec, begin, begin + 4, 3));
  const Partial<TypeParam> right = Over<TypeParam>(spec, 0, 20, 3);
  std::vector<size_t> order = {0, 1, 2, 3, 4};
  do {
    Partial<TypeParam> merged = parts[order[0]];
    for (size_t i = 1; i < order.size(); ++i)
      ASSERT_TRUE(merged.Take(ShapeOf(spec), parts[order[i]]).ok());
    ExpectNear(merged, right);
  } while (std::next_permutation(order.begin(), order.end()));
}

TYPED_TEST(MergeOf, ARowThatOneSideDidNotSeeIsTheOthersBitForBit) {
  using T = TypeParam;
  const PartialShape shape = {.queries = 2, .value_dim = 2};
  const T nan = std::numeric_limits<T>::quiet_NaN(), third = T{1} / 3;
  // Where nothing was seen, out is not read.
  Partial<T> into = {{third, -2, nan, nan}, {T{0.7}, kNothing<T>}};
  const Partial<T> part = {{nan, nan, third, 5}, {kNothing<T>, T{-800}}};
  ASSERT_TRUE(into.Take(shape, part).ok());
  EXPECT_THAT(into.out, ElementsAre(third, -2, third, 5));
  EXPECT_THAT(into.lse, ElementsAre(T{0.7}, T{-800}));
}

TYPED_TEST(MergeOf, ARowThatNeitherSawIsTheIdentity) {
  using T = TypeParam;
  const T nan = std::numeric_limits<T>::quiet_NaN();
  Partial<T> into = {{nan, 3}, {kNothing<T>}};
  ASSERT_TRUE(into.Take({.value_dim = 2}, {{nan, 4}, {kNothing<T>}}).ok());
  EXPECT_THAT(into.out, ElementsAre(0, 0));
  EXPECT_THAT(into.lse, ElementsAre(kNothing<T>));
}

TYPED_TEST(MergeOf, LargeDifferencesAndLargeSumsNeitherOverflowNorVanish) {
  using T = TypeParam;
  for (const T offset : {T{-5000}, T{0}, T{5000}}) {
    // The lesser side's weight is 0 in any precision, then 1/4.
    Partial<T> into = {{1, 5}, {offset, offset}};
    const Partial<T> part = {{9, 1}, {offset + 2000, offset - std::log(T{3})}};
    ASSERT_TRUE(into.Take({.queries = 2}, part).ok());
    EXPECT_EQ(into.out[0], 9);
    EXPECT_EQ(into.lse[0], offset + 2000);
    EXPECT_NEAR(into.out[1], 4, sizeof(T) == 8 ? 1e-11 : 1e-3);
    EXPECT_NEAR(into.lse[1], double{offset} + std::log(4.0 / 3), sizeof(T) == 8 ? 1e-11 : 1e-3);
  }
}

TYPED_TEST(MergeOf, NanPassesThrough) {
  using T = TypeParam;
  const T nan = std::numeric_limits<T>::quiet_NaN();
  const PartialShape shape = {.queries = 6};
  const Partial<T> one = {{nan, 1, 1, nan, 1, 1}, {0, nan, 0, 0, nan, kNothing<T>}};
  const Partial<T> other = {{1, 1, nan, 1, 1, 1}, {0, 0, 0, kNothing<T>, kNothing<T>, nan}};
  for (const bool swapped : {false, true}) {
    Partial<T> into = swapped ? other : one;
    ASSERT_TRUE(into.Take(shape, swapped ? one : other).ok());
    EXPECT_THAT(std::vector<T>(into.out.begin(), into.out.begin() + 4), Each(IsNan()));
    EXPECT_THAT(into.lse,
                ElementsAre(T(std::log(2.0)), IsNan(), T(std::log(2.0)), 0, IsNan(), IsNan()));
  }
}

TEST(Merge, RefusesWhatDoesNotFitAndWritesNothing) {
  const PartialShape good = {.batch = 1, .heads = 2, .queries = 3, .value_dim = 4};
  struct Wrong {
    PartialShape shape;
    size_t into_out, into_lse, part_out, part_lse;
    const char* name;
    const char* says;
  };
  for (const Wrong& wrong : {
           Wrong{good, 23, 6, 24, 6, "into.out has 23", "24"},
           Wrong{good, 24, 7, 24, 6, "into.lse has 7", "6"},
           Wrong{good, 24, 6, 0, 6, "part.out has 0", "24"},
           Wrong{good, 24, 6, 24, 24, "part.lse has 24", "6"},
           Wrong{{.heads = 0}, 0, 0, 0, 0, "heads is 0", "at least 1"},
           Wrong{{.value_dim = -4}, 1, 1, 1, 1, "value_dim is -4", "at least 1"},
           Wrong{{.batch = int64_t{1} << 40, .queries = int64_t{1} << 40},
                 1,
                 1,
                 1,
                 1,
                 "queries",
                 "64 bits"},
           Wrong{{.layout = static_cast<v1::TensorLayout>(9)}, 1, 1, 1, 1, "layout is 9", "BSHD"},
       }) {
    Partial<float> into = {std::vector<float>(wrong.into_out, 1),
                           std::vector<float>(wrong.into_lse, 1)};
    const Partial<float> part = {std::vector<float>(wrong.part_out, 2),
                                 std::vector<float>(wrong.part_lse, 2)};
    const absl::Status status = into.Take(wrong.shape, part);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << wrong.name;
    EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr(wrong.name), HasSubstr(wrong.says)));
    EXPECT_THAT(into.out, Each(1));
    EXPECT_THAT(into.lse, Each(1));
  }
}

TEST(Merge, RefusesToReadWhatItWrites) {
  const PartialShape shape = {.queries = 2};
  std::vector<float> a(8, 1);
  const std::span<float> all(a);
  const auto merge = [&](int out, int lse, int part_out, int part_lse) {
    return std::string(MergePartials(shape, {all.subspan(out, 2), all.subspan(lse, 2)},
                                     {all.subspan(part_out, 2), all.subspan(part_lse, 2)})
                           .message());
  };
  EXPECT_EQ(merge(0, 2, 4, 6), "");
  EXPECT_EQ(merge(0, 2, 5, 5), "");  // only read
  EXPECT_EQ(merge(0, 2, 0, 2), "into.out overlaps part.out");
  EXPECT_EQ(merge(0, 1, 4, 6), "into.out overlaps into.lse");
  EXPECT_EQ(merge(1, 4, 6, 2), "into.out overlaps part.lse");
  EXPECT_EQ(merge(0, 3, 4, 6), "into.lse overlaps part.out");
  EXPECT_EQ(merge(0, 2, 4, 2), "into.lse overlaps part.lse");
}

}  // namespace
}  // namespace ringserve
