// The verifier against a dense fp64 computation of the test's own, and against planted faults.
#include "client/ringctl/verify.h"

#include <cmath>
#include <cstring>
#include <limits>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/elements.h"
#include "tests/support/oracle.h"
#include "tests/support/wait.h"

namespace ringserve {
namespace {

using ::testing::AllOf;
using ::testing::Contains;
using ::testing::Each;
using ::testing::Ge;
using ::testing::Lt;

v1::AttentionSpec Spec(v1::DType dtype, int64_t q_len, int64_t kv_len, bool causal) {
  v1::AttentionSpec spec;
  spec.set_batch(2);
  spec.set_q_heads(4);
  spec.set_kv_heads(2);
  spec.set_q_len(q_len);
  spec.set_kv_len(kv_len);
  spec.set_head_dim(12);
  spec.set_value_dim(20);
  spec.set_dtype(dtype);
  if (causal) spec.add_masks()->set_causal(true);
  return spec;
}

// Two ranks, head-tail: segments of a quarter each.
v1::Layout QuarterLayout(int64_t q_len) {
  v1::Layout layout;
  v1::RowLayout& row = *layout.mutable_q()->add_rows();
  for (int rank = 0; rank < 2; ++rank) {
    v1::RankSegments& segments = *row.add_ranks();
    for (const int piece : {rank, 3 - rank}) {
      v1::Segment& segment = *segments.add_segments();
      segment.set_begin(q_len * piece / 4);
      segment.set_end(q_len * (piece + 1) / 4);
    }
  }
  *layout.mutable_kv() = layout.q();
  return layout;
}

// A request with its right answer, in the request's dtype.
struct Case {
  explicit Case(v1::AttentionSpec s, double gain = 1) : Case(s, test::MaskOf(s), gain) {}
  Case(v1::AttentionSpec s, const test::Sees& sees, double gain = 1)
      : spec(std::move(s)), tensors(test::RandomInputs(spec, 7, gain)) {
    Answer(test::Attend(spec, tensors, sees));
  }

  void Answer(const test::Reference& reference) {
    out = test::FromDoubles(reference.out, spec.dtype());
    lse = test::FromDoubles(reference.lse,
                            spec.dtype() == v1::DTYPE_F64 ? v1::DTYPE_F64 : v1::DTYPE_F32);
  }
  Verification Verify(int threads = 2) const {
    return ringserve::Verify(
        spec, QuarterLayout(spec.q_len()),
        {tensors.q, tensors.k, tensors.v, tensors.bias, tensors.alibi_slopes, tensors.sink_logits},
        {out, lse}, 0, threads);
  }
  // The bytes of one row of out.
  std::span<std::byte> Row(int64_t batch, int64_t head, int64_t query) {
    const int64_t dim = spec.value_dim(),
                  element = out.size() / (spec.batch() * spec.q_heads() * spec.q_len() * dim);
    return std::span(out).subspan(
        RowElement(spec, batch, head, query, spec.q_heads(), spec.q_len(), dim) * element,
        dim * element);
  }

  v1::AttentionSpec spec;
  test::Inputs tensors;
  std::vector<std::byte> out, lse;
};

class VerifyEveryType : public ::testing::TestWithParam<v1::DType> {};
INSTANTIATE_TEST_SUITE_P(Types, VerifyEveryType,
                         ::testing::Values(v1::DTYPE_F32, v1::DTYPE_F64, v1::DTYPE_BF16,
                                           v1::DTYPE_F16),
                         [](const auto& info) { return v1::DType_Name(info.param); });

TEST_P(VerifyEveryType, ARightAnswerIsRight) {
  for (const v1::TensorLayout layout : {v1::TENSOR_LAYOUT_BHSD, v1::TENSOR_LAYOUT_BSHD}) {
    for (const bool causal : {false, true}) {
      v1::AttentionSpec spec = Spec(GetParam(), 300, 300, causal);
      spec.set_tensor_layout(layout);
      const Verification result = Case(spec).Verify();
      EXPECT_TRUE(result.ok()) << result.out->error() << " " << result.out->tolerance;
      EXPECT_GE(result.rows, 2 * 4 * kMinVerifiedRows);
      EXPECT_EQ(result.undefined, 0);
      ASSERT_TRUE(result.out.has_value());
      ASSERT_TRUE(result.lse.has_value());
      EXPECT_LE(result.out->excess(), 0.51);  // rounding to the nearest alone
      EXPECT_LE(result.lse->excess(), 0.51);
    }
  }
}

// Every set of bias, ALiBi slopes and sink logits, over documents of their own alignment.
TEST_P(VerifyEveryType, ARightAnswerWithExtrasIsRight) {
  for (int which = 1; which < 16; ++which) {
    SCOPED_TRACE(which);
    v1::AttentionSpec spec = Spec(GetParam(), 150, 170, false);
    v1::Mask& mask = *spec.add_masks();
    mask.set_bottom_right(true);
    for (const int64_t length : {60, 90}) mask.mutable_documents()->add_q_lengths(length);
    for (const int64_t length : {100, 70}) mask.mutable_documents()->add_kv_lengths(length);
    if (which & 1) spec.mutable_bias()->set_per_head(which & 4);
    if ((which & 9) == 9) spec.mutable_bias()->set_boolean(true);
    if (which & 1) spec.mutable_bias()->set_per_batch(which & 8);
    spec.set_alibi_slopes(which & 2);
    spec.set_sink_logits(which & 4);
    const Verification result = Case(spec).Verify();
    EXPECT_TRUE(result.ok()) << result.out->error() << " " << result.out->tolerance;
    EXPECT_EQ(result.undefined, 0);
    EXPECT_LE(result.out->excess(), 0.51);
    EXPECT_LE(result.lse->excess(), 0.51);
  }
}

TEST(Verify, SeesWhetherExtrasWereHeeded) {
  const v1::AttentionSpec without = Spec(v1::DTYPE_F32, 64, 64, true);
  for (int which = 0; which < 4; ++which) {
    v1::AttentionSpec spec = without;
    if (which == 0) spec.mutable_bias();
    if (which == 1) spec.mutable_bias()->set_boolean(true);
    spec.set_alibi_slopes(which == 2);
    spec.set_sink_logits(which == 3);
    Case c(spec);
    c.Answer(test::Attend(without, c.tensors));
    EXPECT_FALSE(c.Verify().ok()) << which;
  }
}

TEST(Verify, ComparesTheLseThatWasAskedFor) {
  v1::AttentionSpec spec = Spec(v1::DTYPE_F32, 40, 40, true);
  spec.set_sink_logits(true);
  Case c(spec);
  test::Reference reference = test::Attend(spec, c.tensors);
  const auto verify = [&](bool lse_without_sinks) {
    return ringserve::Verify(spec, QuarterLayout(40),
                             {.q = c.tensors.q,
                              .k = c.tensors.k,
                              .v = c.tensors.v,
                              .sink_logits = c.tensors.sink_logits},
                             {c.out, c.lse, lse_without_sinks});
  };
  EXPECT_TRUE(verify(false).ok());
  EXPECT_FALSE(verify(true).ok());
  reference.lse = reference.lse_without_sinks;
  c.Answer(reference);
  EXPECT_TRUE(verify(true).ok());
  EXPECT_FALSE(verify(false).ok());
}

TEST_P(VerifyEveryType, ItIsRightForAnyLengthsAndScales) {
  struct Lengths {
    int64_t q, kv;
  };
  for (const auto [q_len, kv_len] :
       {Lengths{1, 1}, Lengths{2, 1}, Lengths{1, 129}, Lengths{7, 127}, Lengths{65, 128}}) {
    for (const double scale : {0.0, -0.7, 3.0}) {
      v1::AttentionSpec spec = Spec(GetParam(), q_len, kv_len, true);
      spec.mutable_masks(0)->set_bottom_right(true);
      spec.set_scale(scale);
      EXPECT_TRUE(Case(spec).Verify().ok()) << q_len << " " << kv_len << " " << scale;
    }
  }
}

TEST_P(VerifyEveryType, AWrongRowAtASegmentBoundaryIsFound) {
  for (const int64_t query : {0, 99, 100, 199, 200, 299, 300, 399}) {
    Case request(Spec(GetParam(), 400, 400, true));
    // Its neighbour's answer: as close to right as a wrong row may be.
    const int64_t other = query == 399 ? 398 : query + 1;
    std::ranges::copy(request.Row(1, 2, other), request.Row(1, 2, query).begin());
    const Verification result = request.Verify();
    EXPECT_FALSE(result.ok()) << query;
    EXPECT_EQ(result.out->row, (RowId{1, 2, query}));
    EXPECT_TRUE(result.lse->excess() <= 1);
  }
}

TEST_P(VerifyEveryType, AShiftedMaskIsFound) {
  for (const int shift : {-1, 1}) {
    const auto shifted = [shift](int64_t, int64_t q, int64_t k) { return k <= q + shift; };
    EXPECT_FALSE(Case(Spec(GetParam(), 400, 400, true), shifted).Verify().ok()) << shift;
  }
}

TEST_P(VerifyEveryType, ASwappedHeadIsFound) {
  for (const int64_t other : {1, 2}) {  // of the same K/V head, and of the other
    Case request(Spec(GetParam(), 400, 400, true));
    for (int64_t query = 0; query < 400; ++query) {
      std::ranges::swap_ranges(request.Row(1, 0, query), request.Row(1, other, query));
    }
    EXPECT_FALSE(request.Verify().ok());
  }
}

TEST_P(VerifyEveryType, AnUnweightedMergeIsFound) {
  Case request(Spec(GetParam(), 400, 400, false));
  const auto half = [](int64_t begin) {
    return [begin](int64_t, int64_t, int64_t k) { return begin <= k && k < begin + 200; };
  };
  test::Reference mean = test::Attend(request.spec, request.tensors, half(0));
  const test::Reference other = test::Attend(request.spec, request.tensors, half(200));
  for (size_t i = 0; i < mean.out.size(); ++i) mean.out[i] = (mean.out[i] + other.out[i]) / 2;
  const std::vector<std::byte> right = request.lse;
  request.Answer(mean);
  request.lse = right;
  EXPECT_FALSE(request.Verify().ok());
}

TEST_P(VerifyEveryType, AWrongLseIsFound) {
  Case request(Spec(GetParam(), 400, 400, true));
  const v1::DType type = GetParam() == v1::DTYPE_F64 ? v1::DTYPE_F64 : v1::DTYPE_F32;
  std::vector<double> lse = test::ToDoubles(request.lse, type);
  lse[(1 * 4 + 2) * 400 + 200] += 0.01;
  request.lse = test::FromDoubles(lse, type);
  const Verification result = request.Verify();
  EXPECT_FALSE(result.ok());
  EXPECT_EQ(result.lse->row, (RowId{1, 2, 200}));
  EXPECT_NEAR(result.largest_lse->error(), 0.01, 1e-4);
}

TEST_P(VerifyEveryType, ANaNIsWrong) {
  Case request(Spec(GetParam(), 400, 400, true));
  std::ranges::fill(request.Row(0, 3, 399), std::byte{0xFF});
  const Verification result = request.Verify();
  EXPECT_FALSE(result.ok());
  EXPECT_TRUE(std::isnan(result.largest_out->error()));
  EXPECT_EQ(result.out->row, (RowId{0, 3, 399}));
}

TEST_P(VerifyEveryType, TolerancesFollowTheSizeOfTheValues) {
  // A thousand times smaller: zeros are no answer for that.
  Case request(Spec(GetParam(), 400, 400, true));
  std::vector<double> v = test::ToDoubles(request.tensors.v, GetParam());
  for (double& value : v) value /= 1000;
  request.tensors.v = test::FromDoubles(v, GetParam());
  request.Answer(test::Attend(request.spec, request.tensors));
  EXPECT_TRUE(request.Verify().ok());
  std::ranges::fill(request.out, std::byte{0});
  EXPECT_FALSE(request.Verify().ok());
}

TEST_P(VerifyEveryType, LargeScoresExcuseNoZeros) {
  Case request(Spec(GetParam(), 400, 400, true), 100);
  EXPECT_TRUE(request.Verify().ok());
  std::ranges::fill(request.Row(1, 1, 399), std::byte{0});
  EXPECT_FALSE(request.Verify().ok());
}

TEST(Verify, RowsThatSeeNothingAreZeroAndMinusInfinityToTheBit) {
  v1::AttentionSpec spec = Spec(v1::DTYPE_F32, 10, 4, true);
  spec.mutable_masks(0)->set_bottom_right(true);  // the first six see nothing
  Case request(spec);
  EXPECT_TRUE(request.Verify().ok());
  Case touched = request;
  const float tiny = 1e-30f;
  std::memcpy(touched.Row(0, 0, 3).data(), &tiny, sizeof(tiny));
  EXPECT_FALSE(touched.Verify().ok());
  Case zero = request;
  std::memset(zero.lse.data() + 3 * sizeof(float), 0, sizeof(float));
  EXPECT_FALSE(zero.Verify().ok());
}

TEST(Verify, InputsThatAreNotFiniteExcuseTheRowsThatSeeThemAlone) {
  Case request(Spec(v1::DTYPE_F32, 40, 40, true));
  std::vector<double> k = test::ToDoubles(request.tensors.k, v1::DTYPE_F32);
  std::vector<double> v = test::ToDoubles(request.tensors.v, v1::DTYPE_F32);
  const double nan = std::numeric_limits<double>::quiet_NaN();
  k[((1 * 2 + 1) * 40 + 30) * 12] = nan;      // batch row 1, K/V head 1, key 30
  v[((0 * 2 + 0) * 40 + 20) * 20 + 5] = nan;  // batch row 0, K/V head 0, key 20, element 5
  request.tensors.k = test::FromDoubles(k, v1::DTYPE_F32);
  request.tensors.v = test::FromDoubles(v, v1::DTYPE_F32);
  const Verification result = request.Verify();
  EXPECT_TRUE(result.ok());
  EXPECT_EQ(result.undefined, 2 * 10);
  EXPECT_EQ(result.rows, 2 * 4 * 40 - 2 * 10);

  Case before = request;  // query 19 does not see key 20
  std::ranges::fill(before.Row(0, 0, 19), std::byte{0xFF});
  EXPECT_FALSE(before.Verify().ok());
  Case beside = request;  // query 25 does, but not in element 6
  std::memset(beside.Row(0, 0, 25).data() + 6 * sizeof(float), 0xFF, sizeof(float));
  EXPECT_FALSE(beside.Verify().ok());
}

TEST(Verify, SaysWhereNothingCouldBeCompared) {
  Case request(Spec(v1::DTYPE_F32, 40, 40, true));
  EXPECT_TRUE(request.Verify().compared());
  Case no_scores = request;
  std::ranges::fill(no_scores.tensors.q, std::byte{0xFF});
  EXPECT_FALSE(no_scores.Verify().compared());
  EXPECT_EQ(no_scores.Verify().rows, 0);
  Case no_values = request;  // lse alone says nothing of out
  std::ranges::fill(no_values.tensors.v, std::byte{0xFF});
  EXPECT_FALSE(no_values.Verify().compared());
  EXPECT_GT(no_values.Verify().rows, 0);
}

TEST(Verify, TheNumberOfThreadsChangesNothing) {
  Case request(Spec(v1::DTYPE_F32, 500, 500, true));
  std::ranges::fill(request.Row(0, 1, 250), std::byte{0});
  const Verification one = request.Verify(1), many = request.Verify(7);
  EXPECT_EQ(one.rows, many.rows);
  EXPECT_EQ(one.largest_out->error(), many.largest_out->error());
  EXPECT_EQ(one.largest_lse->error(), many.largest_lse->error());
  EXPECT_EQ(one.out->row, many.out->row);
}

TEST(Verify, LargeScoresWidenTheToleranceAndSmallOnesDoNot) {
  EXPECT_TRUE(Case(Spec(v1::DTYPE_F32, 200, 200, true), 30).Verify().ok());
  const double plain = Case(Spec(v1::DTYPE_F32, 200, 200, true)).Verify().lse->tolerance;
  EXPECT_GT(Case(Spec(v1::DTYPE_F32, 200, 200, true), 30).Verify().lse->tolerance, 3 * plain);
}

TEST(QueriesToVerify, HaveTheEndsAndBothSidesOfEveryBoundary) {
  const std::vector<int64_t> queries = QueriesToVerify(4000, QuarterLayout(4000).q(), 0, 0, 1);
  EXPECT_EQ(static_cast<int64_t>(queries.size()), kMinVerifiedRows);
  EXPECT_TRUE(std::ranges::is_sorted(queries));
  for (const int64_t query : {0, 999, 1000, 1999, 2000, 2999, 3000, 3999})
    EXPECT_THAT(queries, Contains(query));
}

TEST(QueriesToVerify, AreAllQueriesWhereThereAreFew) {
  for (const int64_t length : {1, 2, 63, 64}) {
    EXPECT_EQ(
        static_cast<int64_t>(QueriesToVerify(length, QuarterLayout(length).q(), 0, 0, 1).size()),
        length);
  }
}

TEST(QueriesToVerify, AreASeededSampleWhereThereAreManyBoundaries) {
  v1::SequenceLayout layout;
  v1::RankSegments& rank = *layout.add_rows()->add_ranks();
  for (int64_t begin = 0; begin < 4000; begin += 4) {
    v1::Segment& segment = *rank.add_segments();
    segment.set_begin(begin);
    segment.set_end(begin + 4);
  }
  const auto queries = QueriesToVerify(4000, layout, 0, 0, 1);
  EXPECT_EQ(static_cast<int64_t>(queries.size()), kMaxVerifiedRows);
  EXPECT_THAT(queries, AllOf(Contains(0), Contains(3999)));
  EXPECT_EQ(queries, QueriesToVerify(4000, layout, 0, 0, 1));
  EXPECT_NE(queries, QueriesToVerify(4000, layout, 0, 0, 2));
  EXPECT_NE(queries, QueriesToVerify(4000, layout, 0, 1, 1));
}

TEST(QueriesToVerify, StayInsideWhateverTheLayoutSays) {
  v1::SequenceLayout layout;
  v1::Segment& segment = *layout.add_rows()->add_ranks()->add_segments();
  segment.set_begin(-5);
  segment.set_end(std::numeric_limits<int64_t>::max());
  EXPECT_THAT(QueriesToVerify(10, layout, 3, 0, 1), Each(AllOf(Ge(0), Lt(10))));
  EXPECT_EQ(QueriesToVerify(10, {}, 3, 0, 1).size(), 10u);
}

}  // namespace
}  // namespace ringserve
