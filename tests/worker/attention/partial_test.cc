#include "worker/attention/partial.h"

#include <cmath>
#include <limits>

#include <gtest/gtest.h>

namespace ringserve::test {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

Partial Random(at::ScalarType out = at::kFloat, at::ScalarType lse = at::kFloat) {
  return {at::randn({2, 3, 5, 7}, at::kDouble).to(out), at::randn({2, 3, 5}, at::kDouble).to(lse)};
}

Partial Empty(at::ScalarType type = at::kFloat) {
  const Partial empty = {at::full({2, 3, 5, 7}, std::nan(""), type), at::empty({2, 3, 5}, type)};
  Clear(empty);
  return empty;
}

Partial Copy(const Partial& partial) { return {partial.out.clone(), partial.lse.clone()}; }

double Distance(const at::Tensor& a, const at::Tensor& b) {
  return (a.to(at::kDouble) - b.to(at::kDouble)).abs().max().item<double>();
}

// By the formula, in fp64, with no care for extremes.
Partial Sum(const Partial& a, const Partial& b) {
  const at::Tensor wa = a.lse.to(at::kDouble).exp(), wb = b.lse.to(at::kDouble).exp();
  const at::Tensor both = wa + wb;
  return {((wa / both).unsqueeze(-1) * a.out.to(at::kDouble)) +
              ((wb / both).unsqueeze(-1) * b.out.to(at::kDouble)),
          both.log()};
}

class Partials : public ::testing::Test {
 protected:
  void SetUp() override { at::manual_seed(1); }
};

struct Way {
  const char* name;
  void (*merge)(const Partial& into, const Partial& part);
};

class Merging : public ::testing::TestWithParam<Way> {
 protected:
  void SetUp() override { at::manual_seed(1); }
  void Merge(const Partial& into, const Partial& part) { GetParam().merge(into, part); }
};

INSTANTIATE_TEST_SUITE_P(Way, Merging,
                         ::testing::Values(Way{"Rows", ringserve::Merge},
                                           Way{"AnyDevice", MergeOnAnyDevice}),
                         [](const auto& info) { return info.param.name; });

TEST_P(Merging, FollowsTheFormulaForEveryType) {
  for (const at::ScalarType type : {at::kFloat, at::kDouble}) {
    const Partial into = Random(type, type), part = Random(type, type);
    const Partial expected = Sum(into, part);
    Merge(into, part);
    const double tolerance = type == at::kDouble ? 1e-15 : 1e-6;
    EXPECT_LT(Distance(into.out, expected.out), tolerance) << type;
    EXPECT_LT(Distance(into.lse, expected.lse), tolerance) << type;
  }
}

TEST_P(Merging, WithNothingChangesNothing) {
  const Partial part = Random();
  const Partial into = Copy(part);
  Merge(into, Empty());
  EXPECT_TRUE(into.out.equal(part.out));
  EXPECT_TRUE(into.lse.equal(part.lse));
}

TEST_P(Merging, IntoNothingCopies) {
  const Partial part = Random();
  const Partial into = Empty();
  Merge(into, part);
  EXPECT_TRUE(into.out.equal(part.out));
  EXPECT_TRUE(into.lse.equal(part.lse));
}

TEST_P(Merging, OfNothingIntoNothingStaysNothing) {
  const Partial into = Empty();
  Merge(into, Empty());
  EXPECT_TRUE(into.lse.eq(-kInfinity).all().item<bool>());
}

TEST_P(Merging, GoesRowByRow) {
  const Partial into = Random(), part = Random();
  const Partial before = Copy(into);
  into.lse.select(2, 1).fill_(-kInfinity);
  part.lse.select(2, 3).fill_(-kInfinity);
  Merge(into, part);
  EXPECT_TRUE(into.out.select(2, 1).equal(part.out.select(2, 1)));
  EXPECT_TRUE(into.out.select(2, 3).equal(before.out.select(2, 3)));
  EXPECT_FALSE(into.out.select(2, 2).equal(before.out.select(2, 2)));
}

TEST_P(Merging, IsTheSameInAnyOrder) {
  const Partial a = Random(), b = Random(), c = Random();
  const Partial left = Copy(a), right = Copy(c);
  Merge(left, b);
  Merge(left, c);
  Merge(right, b);
  Merge(right, a);
  EXPECT_LT(Distance(left.out, right.out), 1e-6);
  EXPECT_LT(Distance(left.lse, right.lse), 1e-6);
  const Partial inner = Copy(b), outer = Copy(a);
  Merge(inner, c);
  Merge(outer, inner);
  EXPECT_LT(Distance(left.out, outer.out), 1e-6);
  EXPECT_LT(Distance(left.lse, outer.lse), 1e-6);
}

TEST_P(Merging, SurvivesExtremeScores) {
  const Partial into = Random(), part = Random();
  const at::Tensor much = part.out.clone();
  into.lse.fill_(-3e4);
  part.lse.fill_(3e4);
  Merge(into, part);
  EXPECT_TRUE(into.out.equal(much));
  EXPECT_TRUE(into.lse.eq(3e4).all().item<bool>());
  const Partial small = Random();
  small.lse.fill_(-3e4);
  Merge(into, small);
  EXPECT_TRUE(into.out.equal(much));
}

// What is not a number must not become one.
TEST_P(Merging, PassesOnNaN) {
  for (const bool in_part : {true, false}) {
    const Partial into = Random(), part = Random();
    (in_part ? part : into).lse.select(2, 2).fill_(std::nan(""));
    Merge(into, part);
    EXPECT_TRUE(into.lse.select(2, 2).isnan().all().item<bool>()) << in_part;
    EXPECT_TRUE(into.out.select(2, 2).isnan().all().item<bool>()) << in_part;
    EXPECT_FALSE(into.out.select(2, 1).isnan().any().item<bool>()) << in_part;
  }
}

TEST_P(Merging, TakesAnyStrides) {
  const Partial part = Random();
  const Partial expected = Random();
  const Partial token_major = {at::empty({2, 5, 3, 7}).transpose(1, 2).copy_(expected.out),
                               at::empty({5, 2, 3}).permute({1, 2, 0}).copy_(expected.lse)};
  Merge(token_major, {at::empty({3, 2, 5, 7}).transpose(0, 1).copy_(part.out),
                      at::empty({3, 5, 2}).permute({2, 0, 1}).copy_(part.lse)});
  Merge(expected, part);
  EXPECT_TRUE(token_major.out.equal(expected.out));
  EXPECT_TRUE(token_major.lse.equal(expected.lse));
}

TEST_P(Merging, IntoSomeRowsLeavesTheOthers) {
  const Partial into = Random();
  const Partial before = Copy(into);
  Merge(into.Queries(1, 3), Random().Queries(0, 2));
  for (const int64_t row : {0, 3, 4}) {
    EXPECT_TRUE(into.out.select(2, row).equal(before.out.select(2, row)));
    EXPECT_TRUE(into.lse.select(2, row).equal(before.lse.select(2, row)));
  }
  EXPECT_FALSE(into.out.select(2, 2).equal(before.out.select(2, 2)));
}

TEST_P(Merging, RefusesWhatDoesNotFit) {
  EXPECT_THROW(Merge(Random(), Random().Queries(0, 2)), c10::Error);
  EXPECT_THROW(Merge(Random(at::kFloat), Random(at::kDouble, at::kFloat)), c10::Error);
  EXPECT_THROW(Merge(Random(at::kDouble, at::kDouble), Random(at::kBFloat16)), c10::Error);
  EXPECT_THROW(Merge(Random(), Random(at::kFloat, at::kDouble)), c10::Error);
  EXPECT_THROW(Merge(Random(), Random(at::kInt)), c10::Error);
  EXPECT_THROW(Merge(Random(), Random(at::kBFloat16)), c10::Error);
  EXPECT_THROW(Merge(Random(at::kHalf, at::kHalf), Random(at::kHalf, at::kHalf)), c10::Error);
}

TEST_F(Partials, EndInTheAnswersTypeWithZerosWhereNothingWasSeen) {
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16, at::kHalf}) {
    const Partial accumulated = Random();
    accumulated.lse.select(2, 1).fill_(-kInfinity);
    accumulated.out.select(2, 1).fill_(std::nan(""));
    const at::Tensor expected = accumulated.out.to(type);
    expected.select(2, 1).zero_();
    const at::Tensor out = type == at::kFloat ? accumulated.out : at::empty({2, 3, 5, 7}, type);
    Finalize(accumulated, out);
    EXPECT_TRUE(out.equal(expected)) << type;
  }
}

TEST_P(Merging, TakesClosedPartialsAlone) {
  Partial open = Random();
  open.total = at::ones({2, 3, 5});
  EXPECT_THROW(Merge(open, Random()), c10::Error);
  EXPECT_THROW(Merge(Random(), open), c10::Error);
}

class Settling : public Partials {};

TEST_F(Settling, DividesByTheTotal) {
  Partial open = Random();
  open.total = at::rand({2, 3, 5}).add(1);
  const Partial before = Copy(open);
  Settle(open);
  EXPECT_LT(Distance(open.out, before.out / open.total.unsqueeze(-1)), 1e-6);
  EXPECT_LT(Distance(open.lse, before.lse + open.total.log()), 1e-6);
}

TEST_F(Settling, LeavesRowsThatSawNothing) {
  Partial open = Empty();
  open.total = at::full({2, 3, 5}, std::nan(""));
  Settle(open);
  EXPECT_TRUE(open.lse.isneginf().all().item<bool>());
}

TEST_F(Settling, RefusesWhatIsClosedOrWide) {
  EXPECT_THROW(Settle(Random()), c10::Error);
  Partial wide = Random(at::kDouble, at::kDouble);
  wide.total = at::ones({2, 3, 5}, at::kDouble);
  EXPECT_THROW(Settle(wide), c10::Error);
}

class Sinks : public Partials {};

// A sink is a partial with one score and a value of 0.
TEST_F(Sinks, AreOneMoreScoreOfEachRow) {
  for (const at::ScalarType type : {at::kFloat, at::kDouble}) {
    const at::Tensor logits = at::tensor({-2.f, 0.5f, 40.f});
    const Partial partial = Random(type, type);
    const Partial sink = {at::zeros_like(partial.out),
                          logits.view({1, 3, 1}).expand({2, 3, 5}).to(type)};
    const Partial expected = Sum(partial, sink);
    const at::Tensor lse = partial.lse.clone();
    const Partial kept = Copy(partial);
    AddSinks(partial, logits, /*keep_lse=*/false);
    const double tolerance = type == at::kDouble ? 1e-14 : 4e-6;
    EXPECT_LT(Distance(partial.out, expected.out), tolerance) << type;
    EXPECT_LT(Distance(partial.lse, expected.lse), tolerance) << type;
    AddSinks(kept, logits, /*keep_lse=*/true);
    EXPECT_TRUE(kept.out.equal(partial.out));
    EXPECT_TRUE(kept.lse.equal(lse));
  }
}

TEST_F(Sinks, AreAllThatRowsWithoutKeysHave) {
  const at::Tensor logits = at::tensor({-2.f, static_cast<float>(-kInfinity), 40.f});
  for (const bool keep_lse : {false, true}) {
    const Partial partial = Empty();
    AddSinks(partial, logits, keep_lse);
    Finalize(partial, partial.out);
    EXPECT_TRUE(partial.out.eq(0).all().item<bool>());
    for (int head = 0; head < 3; ++head) {
      const float expected = keep_lse ? -kInfinity : logits[head].item<float>();
      EXPECT_TRUE(partial.lse.select(1, head).eq(expected).all().item<bool>()) << head;
    }
  }
}

TEST_F(Sinks, OfMinusInfinityChangeNothing) {
  const Partial partial = Random();
  const Partial before = Copy(partial);
  AddSinks(partial, at::full({3}, -kInfinity), /*keep_lse=*/false);
  EXPECT_TRUE(partial.out.equal(before.out));
  EXPECT_TRUE(partial.lse.equal(before.lse));
}

TEST_F(Sinks, OfAnyMagnitudeStayFinite) {
  const Partial partial = Random();
  partial.lse.select(2, 0).fill_(3e38f);
  partial.lse.select(2, 1).fill_(-3e38f);
  const at::Tensor out = partial.out.clone();
  AddSinks(partial, at::tensor({3e38f, -3e38f, 0.f}), /*keep_lse=*/false);
  EXPECT_FALSE(partial.out.isnan().any().item<bool>());
  EXPECT_FALSE(partial.lse.isnan().any().item<bool>());
  EXPECT_TRUE(partial.out[0][2][0].equal(out[0][2][0])) << "dwarfs the sink";
  EXPECT_TRUE(partial.out[0][2][1].eq(0).all().item<bool>()) << "dwarfed by it";
}

TEST_F(Sinks, PassOnNaN) {
  const at::Tensor logits = at::tensor({static_cast<float>(std::nan("")), 1.f, 2.f});
  for (const Partial& partial : {Random(), Empty()}) {
    partial.lse[1][1][2].fill_(std::nan(""));
    partial.out[1][1][2].fill_(std::nan(""));
    AddSinks(partial, logits, /*keep_lse=*/false);
    Finalize(partial, partial.out);
    EXPECT_TRUE(partial.lse.select(1, 0).isnan().all().item<bool>());
    EXPECT_TRUE(partial.out.select(1, 0).isnan().all().item<bool>());
    EXPECT_FALSE(partial.lse.select(1, 2).isnan().any().item<bool>());
    EXPECT_TRUE(partial.lse[1][1][2].isnan().item<bool>());
    EXPECT_TRUE(partial.out[1][1][2].isnan().all().item<bool>());
  }
}

TEST_F(Sinks, OfAnotherShapeOrTypeAreRefused) {
  EXPECT_THROW(AddSinks(Random(), at::zeros({2}), false), c10::Error);
  EXPECT_THROW(AddSinks(Random(), at::zeros({3}, at::kDouble), false), c10::Error);
}

}  // namespace
}  // namespace ringserve::test
