// Against dense attention in fp64. Where products are wide nothing is rounded to 16 bits, so that
// the tolerance is that of fp32.
#include "worker/attention/flash_block.h"

#include <cmath>
#include <limits>

#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include "tests/support/random.h"

namespace ringserve::test {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr int64_t kAny = 1 << 30;
constexpr float kScale = 0.3f;

struct Road {
  at::ScalarType type;
  Products products;
};

struct Tensors {
  at::Tensor q, k, v;
};

Tensors RandomTensors(at::ScalarType type, int64_t batch, int64_t q_heads, int64_t kv_heads,
                      int64_t queries, int64_t keys, int64_t dim, int64_t value_dim) {
  return {at::randn({batch, q_heads, queries, dim}).to(type),
          at::randn({batch, kv_heads, keys, dim}).to(type),
          at::randn({batch, kv_heads, keys, value_dim}).to(type)};
}

Partial Nothing(const Tensors& t) {
  const Partial into = {
      at::full({t.q.size(0), t.q.size(1), t.q.size(2), t.v.size(3)}, std::nan(""), at::kFloat),
      at::empty({t.q.size(0), t.q.size(1), t.q.size(2)}, at::kFloat)};
  Clear(into);
  return into;
}

Partial Expected(const Tensors& t, int64_t lo, int64_t hi) {
  const int64_t group = t.q.size(1) / t.k.size(1);
  const at::Tensor diagonal =
      at::arange(t.k.size(2)).unsqueeze(0) - at::arange(t.q.size(2)).unsqueeze(1);
  const at::Tensor hidden = diagonal.lt(lo).logical_or(diagonal.gt(hi));
  const at::Tensor keys = t.k.to(at::kDouble).repeat_interleave(group, 1);
  const at::Tensor values = t.v.to(at::kDouble).repeat_interleave(group, 1);
  const at::Tensor scores = (at::matmul(t.q.to(at::kDouble), keys.transpose(2, 3)) * double{kScale})
                                .masked_fill(hidden, -kInfinity);
  const at::Tensor lse = scores.logsumexp(-1);
  return {at::matmul((scores - lse.unsqueeze(-1)).exp().masked_fill(hidden, 0), values), lse};
}

double Difference(const at::Tensor& actual, const at::Tensor& expected) {
  return (actual.to(at::kDouble) - expected).abs().max().item<double>();
}

void ExpectNear(const Partial& actual, const Partial& expected, Products products) {
  const at::Tensor unseen = expected.lse.isneginf();
  ASSERT_TRUE(actual.lse.isneginf().equal(unseen));
  Finalize(actual, actual.out);
  EXPECT_LT(Difference(actual.out, expected.out), products == Products::kPairs ? 2e-2 : 1e-5);
  EXPECT_LT(Difference(actual.lse.masked_fill(unseen, 0), expected.lse.masked_fill(unseen, 0)),
            1e-5);
}

class FlashBlock : public ::testing::TestWithParam<Road> {
 protected:
  void SetUp() override {
    at::manual_seed(1);
    at::set_num_threads(1);  // small products on a busy machine: threads wait for each other
    if (products() == Products::kPairs && BestProducts(type()) != Products::kPairs) {
      GTEST_SKIP() << "this processor multiplies no pairs of bf16";
    }
  }
  at::ScalarType type() const { return GetParam().type; }
  Products products() const { return GetParam().products; }
  void Accumulate(const Partial& into, const Tensors& t, int64_t lo = -kAny, int64_t hi = kAny) {
    AccumulateFlash(into, t.q, t.k, t.v, lo, hi, kScale, products());
  }
  void Check(const Tensors& t, int64_t lo = -kAny, int64_t hi = kAny) {
    const Partial into = Nothing(t);
    Accumulate(into, t, lo, hi);
    ExpectNear(into, Expected(t, lo, hi), products());
  }
};

TEST_P(FlashBlock, OfAnyShapeAndBandIsAddedRight) {
  Random random(1);
  for (int i = 0; i < 150; ++i) {
    SCOPED_TRACE(i);
    const int64_t queries = random.Between(1, 200), keys = random.Between(1, 700);
    const Tensors t = RandomTensors(type(), random.Between(1, 3), 4, random.Pick({1, 2, 4}),
                                    queries, keys, random.Between(1, 40), random.Between(1, 90));
    Check(t, random.Chance(0.5) ? random.Between(-queries, keys) : -kAny,
          random.Chance(0.5) ? random.Between(-queries, keys) : kAny);
  }
}

TEST_P(FlashBlock, OfHeadDimsInUseIsAddedRight) {
  for (const int64_t dim : {64, 80, 96, 128, 192, 256}) {
    SCOPED_TRACE(dim);
    const Tensors t = RandomTensors(type(), 1, 4, 2, 130, 600, dim, dim);
    t.q.mul_(std::sqrt(4.0 / dim));
    Check(t);
    Check(t, -kAny, 0);
  }
}

TEST_P(FlashBlock, LongerThanWhatIsLaidOutAtOnceIsAddedRight) {
  const Tensors t = RandomTensors(type(), 1, 2, 1, 70, 2 * kKeysLaidOut + 33, 8, 8);
  Check(t);
  Check(t, kKeysLaidOut - 48, kKeysLaidOut + 52);
  Check(t, kKeysLaidOut - 30, kAny);
}

// 512 heads of at least 33 KiB each.
TEST_P(FlashBlock, OfMoreHeadsThanAreLaidOutAtOnceIsAddedRight) {
  Check(RandomTensors(type(), 4, 256, 128, 3, 200, 48, 48));
}

// Up to kFewRows rows of scores nothing is laid out; a little more, and heads share a block.
TEST_P(FlashBlock, OfFewQueriesIsAddedRight) {
  for (const int64_t queries : {1, 2, 3, 4, 5, 17, 33}) {
    for (const auto& [q_heads, kv_heads] : {std::pair{4, 4}, {8, 2}, {6, 2}, {7, 1}}) {
      SCOPED_TRACE(testing::Message() << queries << " of " << q_heads << " on " << kv_heads);
      const Tensors t =
          RandomTensors(type(), 2, q_heads, kv_heads, queries, 2 * kKeysLaidOut + 33, 20, 18);
      Check(t);
      Check(t, kKeysLaidOut - 5, kKeysLaidOut + 3);
      Check(t, -kAny, -1);
    }
  }
}

TEST_P(FlashBlock, OnSeveralThreadsGivesTheSameBits) {
  const Tensors t = RandomTensors(type(), 2, 4, 2, 150, 900, 32, 32);
  const Partial alone = Nothing(t), together = Nothing(t);
  Accumulate(alone, t, -kAny, 100);
  at::set_num_threads(3);
  Accumulate(together, t, -kAny, 100);
  EXPECT_TRUE(together.lse.equal(alone.lse));
  EXPECT_TRUE(at::nan_to_num(together.out).equal(at::nan_to_num(alone.out)));
}

TEST_P(FlashBlock, TakesAnyStrides) {
  const Tensors t = RandomTensors(type(), 2, 4, 2, 90, 100, 24, 24);
  const auto token_major = [](const at::Tensor& tensor) {
    return tensor.transpose(1, 2).contiguous().transpose(1, 2);
  };
  const Partial dense = Nothing(t), strided = Nothing(t);
  Accumulate(dense, t, -kAny, 0);
  const Partial view = {token_major(strided.out), token_major(strided.lse.unsqueeze(3)).squeeze(3)};
  Accumulate(view, {token_major(t.q), token_major(t.k), token_major(t.v)}, -kAny, 0);
  EXPECT_TRUE(view.out.equal(dense.out));
  EXPECT_TRUE(view.lse.equal(dense.lse));
}

TEST_P(FlashBlock, AfterBlockGivesTheWhole) {
  const Tensors t = RandomTensors(type(), 1, 2, 2, 100, 300, 16, 16);
  const Partial into = Nothing(t);
  for (const auto& [begin, end] : {std::pair{0, 70}, {70, 250}, {250, 300}}) {
    AccumulateFlash(into, t.q, t.k.slice(2, begin, end), t.v.slice(2, begin, end), -kAny,
                    120 - begin, kScale, products());
  }
  ExpectNear(into, Expected(t, -kAny, 120), products());
}

// Hundreds of blocks of scores near 1000, whose lse has a step of 6e-5: were it rounded in between,
// it would be off by many of them.
TEST_P(FlashBlock, AfterBlockRoundsNoLseInAnOpenAccumulator) {
  constexpr int64_t kBlocks = 300, kHeight = 1000;
  const Tensors t = RandomTensors(type(), 1, 2, 1, 20, 64, 16, 16);
  const ScoreTerms terms = {.bias = at::full({1, 1, 20, 64}, kHeight, type())};
  Partial into = Nothing(t);
  into.total = at::full({1, 2, 20}, std::nan(""));
  for (int64_t i = 0; i < kBlocks; ++i) {
    AccumulateFlash(into, t.q, t.k, t.v, -kAny, kAny, kScale, products(), terms);
  }
  Settle(into);
  const at::Tensor expected = Expected(t, -kAny, kAny).lse + kHeight + std::log(double{kBlocks});
  EXPECT_LT(Difference(into.lse, expected), 1.5e-4);
}

TEST_P(FlashBlock, LeavesRowsOfAnOpenAccumulatorThatSeeNothingAsTheyWere) {
  const Tensors t = RandomTensors(type(), 1, 2, 1, 100, 80, 16, 16);
  Partial into = Nothing(t);
  into.total = at::full({1, 2, 100}, std::nan(""));
  Accumulate(into, t, -kAny, -30);
  Settle(into);
  ExpectNear({into.out, into.lse}, Expected(t, -kAny, -30), products());
}

// The next product starts from an accumulator that dwarfs it, and the other way round.
TEST_P(FlashBlock, ThatIsDwarfedChangesNothing) {
  const Tensors t = RandomTensors(type(), 1, 1, 1, 20, 30, 16, 16);
  const Partial into = Nothing(t);
  into.out.fill_(3);
  into.lse.fill_(1000);
  Accumulate(into, t);
  EXPECT_TRUE(into.out.eq(3).all().item<bool>());
  EXPECT_TRUE(into.lse.eq(1000).all().item<bool>());
  into.lse.fill_(-1000);
  Accumulate(into, t);
  ExpectNear(into, Expected(t, -kAny, kAny), products());
}

TEST_P(FlashBlock, LeavesRowsThatSeeNothingAsTheyWere) {
  const Tensors t = RandomTensors(type(), 1, 2, 1, 100, 80, 16, 16);
  const Partial into = Nothing(t);
  Accumulate(into, t, -kAny, -30);
  EXPECT_TRUE(into.lse.narrow(2, 0, 30).isneginf().all().item<bool>());
  EXPECT_TRUE(into.out.narrow(2, 0, 30).isnan().all().item<bool>()) << "not even touched";
  EXPECT_FALSE(into.out.narrow(2, 30, 70).isnan().any().item<bool>());
}

TEST_P(FlashBlock, OfScoresOfMinusInfinityWeighsNothing) {
  const Tensors t = RandomTensors(type(), 1, 2, 1, 20, 600, 16, 16);
  t.q.abs_();
  t.k.narrow(2, 0, 590).fill_(-kInfinity);
  const Partial into = Nothing(t);
  Accumulate(into, t);
  const Tensors rest = {t.q, t.k.narrow(2, 590, 10), t.v.narrow(2, 590, 10)};
  ExpectNear(into, Expected(rest, -kAny, kAny), products());
  t.k.fill_(-kInfinity);
  const Partial nothing = Nothing(t);
  Accumulate(nothing, t);
  EXPECT_TRUE(nothing.lse.isneginf().all().item<bool>());
}

TEST_P(FlashBlock, PassesOnNaNInTheRowsThatSeeIt) {
  const Tensors clean = RandomTensors(type(), 1, 1, 1, 100, 700, 16, 16);
  for (at::Tensor Tensors::*tensor : {&Tensors::q, &Tensors::k}) {
    Tensors t = {clean.q.clone(), clean.k.clone(), clean.v.clone()};
    (t.*tensor)[0][0][40][3] = std::nan("");
    const Partial into = Nothing(t);
    Accumulate(into, t, -kAny, 0);
    Accumulate(into, clean, 1, kAny);
    const at::Tensor bad = into.lse.isnan().view(-1);
    EXPECT_TRUE(bad[40].item<bool>());
    EXPECT_FALSE(bad.narrow(0, 0, 40).any().item<bool>());
    EXPECT_TRUE(into.out.isnan().all(-1).view(-1).equal(bad));
    EXPECT_EQ(bad.narrow(0, 40, 60).all().item<bool>(), tensor == &Tensors::k);
  }
  Tensors t = {clean.q, at::full_like(clean.k, std::nan("")), clean.v};
  const Partial into = Nothing(t);
  Accumulate(into, t);
  EXPECT_TRUE(into.lse.isnan().all().item<bool>()) << "nothing but NaN is not nothing";
  EXPECT_TRUE(into.out.isnan().all().item<bool>());
}

INSTANTIATE_TEST_SUITE_P(Of, FlashBlock,
                         ::testing::Values(Road{at::kBFloat16, Products::kPairs},
                                           Road{at::kBFloat16, Products::kWide},
                                           Road{at::kHalf, Products::kWide},
                                           Road{at::kFloat, Products::kWide}),
                         [](const auto& info) {
                           return std::string(c10::toString(info.param.type)) +
                                  (info.param.products == Products::kPairs ? "Pairs" : "Wide");
                         });

TEST(FlashBlocks, RefuseOtherTypes) {
  const auto add = [](const Partial& into, const Tensors& t, Products products) {
    AccumulateFlash(into, t.q, t.k, t.v, -kAny, kAny, 1, products);
  };
  const Tensors half = RandomTensors(at::kHalf, 1, 1, 1, 4, 4, 8, 8);
  const Tensors wide = RandomTensors(at::kDouble, 1, 1, 1, 4, 4, 8, 8);
  EXPECT_THROW(add(Nothing(wide), wide, Products::kWide), c10::Error);
  EXPECT_THROW(add(Nothing(half), half, Products::kPairs), c10::Error);
  EXPECT_THROW(add(Nothing(half), {half.q, wide.k, half.v}, Products::kWide), c10::Error);
  const Partial narrow = {Nothing(half).out.to(at::kHalf), Nothing(half).lse};
  EXPECT_THROW(add(narrow, half, Products::kWide), c10::Error);
}

}  // namespace
}  // namespace ringserve::test
