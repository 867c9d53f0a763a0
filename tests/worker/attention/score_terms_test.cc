// Bias and ALiBi slopes inside a tile, against dense attention in fp64.
#include "worker/attention/score_terms.h"

#include <cmath>
#include <limits>
#include <tuple>

#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include "tests/support/random.h"
#include "tests/worker/attention/every_block.h"
#include "worker/attention/block.h"

namespace ringserve::test {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr int64_t kUnbounded = int64_t{1} << 50;

// Query i is at key position i + kOffset; key j of the shard is key j + kFirstKey of the request,
// which has kMoreKeys more.
constexpr int64_t kOffset = 17, kFirstKey = 5, kMoreKeys = 9;

struct Tensors {
  at::Tensor q, k, v;
  ScoreTerms terms;  // of all queries and all keys of the request
};

Tensors RandomTensors(at::ScalarType type, int64_t batch, int64_t q_heads, int64_t kv_heads,
                      int64_t queries, int64_t keys, int64_t dim, int64_t value_dim) {
  return {at::randn({batch, q_heads, queries, dim}).to(type),
          at::randn({batch, kv_heads, keys, dim}).to(type),
          at::randn({batch, kv_heads, keys, value_dim}).to(type),
          {}};
}

at::Tensor RandomBias(const Tensors& t, int64_t batch, int64_t heads) {
  return at::randn({batch, heads, t.q.size(2), kFirstKey + t.k.size(2) + kMoreKeys})
      .to(t.q.scalar_type());
}

at::Tensor Slopes(int64_t heads) { return at::arange(heads, at::kFloat).mul(-1).exp2(); }

Tile WholeTile(const Tensors& t) {
  return {.q_end = t.q.size(2),
          .k_end = t.k.size(2),
          .k_position = kFirstKey,
          .distance = kOffset - kFirstKey};
}

// The same pairs, cut out of the whole: what the tile says of its place moves with its corner.
Tile Cut(Tile tile, int64_t q_begin, int64_t q_end, int64_t k_begin, int64_t k_end) {
  tile.k_position += k_begin - tile.k_begin;
  tile.distance += (q_begin - tile.q_begin) - (k_begin - tile.k_begin);
  tile.q_begin = q_begin, tile.q_end = q_end, tile.k_begin = k_begin, tile.k_end = k_end;
  return tile;
}

at::Tensor Hidden(const Tensors& t, const Tile& tile) {
  const at::Tensor rows = at::arange(t.q.size(2)).unsqueeze(1), keys = at::arange(t.k.size(2));
  const at::Tensor diagonal = (keys - tile.k_begin) - (rows - tile.q_begin);
  return rows.lt(tile.q_begin)
      .logical_or(rows.ge(tile.q_end))
      .logical_or(keys.lt(tile.k_begin))
      .logical_or(keys.ge(tile.k_end))
      .logical_or(diagonal.lt(tile.lo.value_or(-kUnbounded)))
      .logical_or(diagonal.gt(tile.hi.value_or(kUnbounded)));
}

Partial Expected(const Tensors& t, const Tile& tile, double scale) {
  const int64_t group = t.q.size(1) / t.k.size(1);
  const at::Tensor keys = t.k.to(at::kDouble).repeat_interleave(group, 1);
  const at::Tensor values = t.v.to(at::kDouble).repeat_interleave(group, 1);
  at::Tensor scores = at::matmul(t.q.to(at::kDouble), keys.transpose(2, 3)) * scale;
  if (t.terms.alibi_slopes.defined()) {
    const at::Tensor distance =
        at::arange(t.q.size(2)).unsqueeze(1) + kOffset - (at::arange(t.k.size(2)) + kFirstKey);
    scores = scores - t.terms.alibi_slopes.to(at::kDouble).view({-1, 1, 1}) * distance.abs();
  }
  at::Tensor hidden = Hidden(t, tile).expand(scores.sizes());
  if (t.terms.bias.defined()) {
    const at::Tensor bias = t.terms.bias.narrow(3, kFirstKey, t.k.size(2));
    const bool hides = bias.scalar_type() == at::kBool || bias.scalar_type() == at::kByte;
    if (!hides) scores = scores + bias.to(at::kDouble);
    hidden = hidden.logical_or(hides ? bias.eq(0) : bias.isneginf());
  }
  scores = scores.masked_fill(hidden, -kInfinity);
  const at::Tensor lse = scores.logsumexp(-1);
  const at::Tensor weights = (scores - lse.unsqueeze(-1)).exp().masked_fill(hidden, 0);
  return {at::matmul(weights, values), lse};
}

// The block that the present test is about.
const ringserve::Block* tested = nullptr;

void Add(const Partial& into, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
         const Tile& tile, double scale, const ScoreTerms& terms = {}) {
  tested->Accumulate(into, q, k, v, tile, scale, terms);
}

Partial Nothing(const Tensors& t) {
  const at::ScalarType type = t.q.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const Partial into = {
      at::full({t.q.size(0), t.q.size(1), t.q.size(2), t.v.size(3)}, std::nan(""), type),
      at::empty({t.q.size(0), t.q.size(1), t.q.size(2)}, type)};
  Clear(into);
  return into;
}

double Difference(const at::Tensor& actual, const at::Tensor& expected) {
  return (actual.to(at::kDouble) - expected).abs().max().item<double>();
}

// `tiles` make up `whole`.
void Check(const Tensors& t, const Tile& whole, const std::vector<Tile>& tiles) {
  const double scale = 1 / std::sqrt(t.q.size(3));
  const Partial actual = Nothing(t);
  for (const Tile& tile : tiles) Add(actual, t.q, t.k, t.v, tile, scale, t.terms);
  const Partial expected = Expected(t, whole, scale);
  const at::Tensor unseen = expected.lse.isneginf();
  ASSERT_TRUE(actual.lse.isneginf().equal(unseen));
  Finalize(actual, actual.out);
  const at::ScalarType type = t.q.scalar_type();
  EXPECT_LT(Difference(actual.out, expected.out), type == at::kDouble  ? 1e-12
                                                  : type == at::kFloat ? 3e-5
                                                                       : 4e-2);
  EXPECT_LT(Difference(actual.lse.masked_fill(unseen, 0), expected.lse.masked_fill(unseen, 0)),
            type == at::kDouble ? 1e-12 : 1e-4);
}

void Check(const Tensors& t, const Tile& tile) { Check(t, tile, {tile}); }

class ScoreTermsOf : public ::testing::TestWithParam<std::tuple<NamedBlock, at::ScalarType>> {
 protected:
  void SetUp() override {
    tested = std::get<0>(GetParam()).block;
    at::manual_seed(1);
    at::set_num_threads(1);
  }
  at::ScalarType type() const { return std::get<1>(GetParam()); }
};

TEST_P(ScoreTermsOf, EveryShapeOfBiasAreAdded) {
  Tensors t = RandomTensors(type(), 2, 4, 2, 70, 130, 16, 12);
  for (const int64_t batch : {1, 2}) {
    for (const int64_t heads : {1, 4}) {
      SCOPED_TRACE(testing::Message() << batch << " " << heads);
      t.terms.bias = RandomBias(t, batch, heads);
      Check(t, WholeTile(t));
    }
  }
}

TEST_P(ScoreTermsOf, SlopesAreAddedOnBothSidesOfTheDiagonal) {
  Tensors t = RandomTensors(type(), 2, 6, 2, 70, 130, 16, 12);
  t.terms.alibi_slopes = Slopes(6);
  Check(t, WholeTile(t));
  t.terms.bias = RandomBias(t, 1, 6);
  Check(t, WholeTile(t));
}

TEST_P(ScoreTermsOf, BooleansHide) {
  Tensors t = RandomTensors(type(), 2, 4, 2, 70, 130, 16, 12);
  t.terms.alibi_slopes = Slopes(4);
  t.terms.bias = RandomBias(t, 2, 4).gt(0);
  t.terms.bias.select(2, 3).fill_(false);
  Check(t, WholeTile(t));
  t.terms.bias = t.terms.bias.to(at::kByte).mul(255);
  Check(t, WholeTile(t));
}

TEST_P(ScoreTermsOf, RowsWithoutAVisiblePairStayAsTheyWere) {
  Tensors t = RandomTensors(type(), 1, 2, 1, 40, 100, 16, 12);
  t.terms.bias = RandomBias(t, 1, 2);
  t.terms.bias.narrow(2, 5, 20).fill_(-kInfinity);
  t.terms.bias.narrow(2, 30, 3).narrow(3, 0, kFirstKey + 99).fill_(-kInfinity);
  Check(t, WholeTile(t));
  const Partial into = Nothing(t);
  Add(into, t.q, t.k, t.v, WholeTile(t), 1, t.terms);
  EXPECT_TRUE(into.out.narrow(2, 5, 20).isnan().all().item<bool>()) << "not even touched";
  // After something was seen, a tile that hides everything changes nothing.
  Add(into, t.q, t.k, t.v, WholeTile(t), 1);
  const Partial before = {into.out.clone(), into.lse.clone()};
  t.terms.bias.fill_(-kInfinity);
  Add(into, t.q, t.k, t.v, WholeTile(t), 1, t.terms);
  EXPECT_TRUE(into.out.equal(before.out));
  EXPECT_TRUE(into.lse.equal(before.lse));
}

TEST_P(ScoreTermsOf, EveryKindOfTileAreThoseOfItsPlace) {
  Random random(1);
  for (int i = 0; i < 60; ++i) {
    SCOPED_TRACE(i);
    const int64_t queries = random.Pick({1, 2, 7, 70, 150}), keys = random.Between(1, 700);
    Tensors t = RandomTensors(type(), random.Between(1, 2), 4, random.Pick({1, 2, 4}), queries,
                              keys, random.Between(1, 20), random.Between(1, 20));
    if (random.Chance(0.6)) t.terms.alibi_slopes = Slopes(4);
    if (random.Chance(0.6) || !t.terms.any()) {
      t.terms.bias = RandomBias(t, random.Pick({int64_t{1}, t.q.size(0)}), random.Pick({1, 4}));
      if (random.Chance(0.4)) t.terms.bias = t.terms.bias.gt(-0.5);
    }
    const int64_t q_begin = random.Between(0, queries - 1), k_begin = random.Between(0, keys - 1);
    Tile tile = Cut(WholeTile(t), q_begin, random.Between(q_begin + 1, queries), k_begin,
                    random.Between(k_begin + 1, keys));
    if (random.Chance(0.5)) tile.hi = random.Between(-queries, keys);
    if (random.Chance(0.4)) tile.lo = random.Between(-queries, keys);
    Check(t, tile);
  }
}

TEST_P(ScoreTermsOf, PartsGiveTheWhole) {
  Tensors t = RandomTensors(type(), 1, 4, 2, 90, 200, 16, 16);
  t.terms.alibi_slopes = Slopes(4);
  t.terms.bias = RandomBias(t, 1, 4);
  const Tile whole = WholeTile(t);
  std::vector<Tile> parts;
  for (const int64_t q : {0, 30, 60}) {
    for (const auto& [begin, end] : {std::pair{0, 11}, {11, 150}, {150, 200}}) {
      parts.push_back(Cut(whole, q, q + 30, begin, end));
    }
  }
  Check(t, whole, parts);
}

TEST_P(ScoreTermsOf, NaNGoesToTheRowsThatSeeIt) {
  Tensors t = RandomTensors(type(), 1, 2, 1, 40, 100, 16, 12);
  t.terms.bias = RandomBias(t, 1, 1);
  t.terms.bias[0][0][7].fill_(std::nan(""));
  t.terms.bias[0][0][9][kFirstKey + 50].fill_(std::nan(""));
  t.terms.bias[0][0][11][kFirstKey - 1].fill_(std::nan(""));  // not a key of this tile
  const Partial into = Nothing(t);
  Add(into, t.q, t.k, t.v, WholeTile(t), 1, t.terms);
  for (int64_t row = 0; row < 40; ++row) {
    const bool expected = row == 7 || row == 9;
    EXPECT_EQ(into.lse.select(2, row).isnan().all().item<bool>(), expected) << row;
    EXPECT_EQ(into.out.select(2, row).isnan().any().item<bool>(), expected) << row;
  }
}

TEST_P(ScoreTermsOf, TokenMajorTensorsAreAddedRight) {
  Tensors t = RandomTensors(type(), 2, 4, 2, 33, 65, 16, 12);
  const auto token_major = [](const at::Tensor& tensor) {
    return tensor.transpose(1, 2).contiguous().transpose(1, 2);
  };
  t.terms.bias = token_major(RandomBias(t, 2, 4));
  Check({token_major(t.q), token_major(t.k), token_major(t.v), t.terms}, WholeTile(t));
}

TEST_P(ScoreTermsOf, OtherShapesAndTypesAreRefused) {
  const Tensors t = RandomTensors(type(), 1, 2, 1, 8, 8, 4, 4);
  const Tile tile = {.q_end = 8, .k_end = 8};
  const auto add = [&](const ScoreTerms& terms) { Add(Nothing(t), t.q, t.k, t.v, tile, 1, terms); };
  const at::ScalarType other = type() == at::kFloat ? at::kDouble : at::kFloat;
  EXPECT_THROW(add({.bias = at::zeros({1, 1, 8, 8}, other)}), c10::Error);
  EXPECT_THROW(add({.bias = at::zeros({1, 1, 8, 8}, type()).transpose(2, 3)}), c10::Error);
  EXPECT_THROW(add({.bias = at::zeros({1, 1, 8, 7}, type())}), c10::Error);
  EXPECT_THROW(add({.bias = at::zeros({1, 1, 7, 8}, type())}), c10::Error);
  EXPECT_THROW(add({.bias = at::zeros({1, 3, 8, 8}, type())}), c10::Error);
  EXPECT_THROW(add({.alibi_slopes = at::zeros({3})}), c10::Error);
  EXPECT_THROW(add({.alibi_slopes = at::zeros({2}, at::kDouble)}), c10::Error);
}

INSTANTIATE_TEST_SUITE_P(Every, ScoreTermsOf,
                         ::testing::Combine(::testing::ValuesIn(EveryBlock()),
                                            ::testing::Values(at::kFloat, at::kDouble,
                                                              at::kBFloat16, at::kHalf)),
                         [](const auto& info) {
                           return std::get<0>(info.param).name +
                                  c10::toString(std::get<1>(info.param));
                         });

class ScoreTermsOfWideNumbers : public ::testing::TestWithParam<NamedBlock> {
 protected:
  void SetUp() override { tested = GetParam().block; }
};

INSTANTIATE_TEST_SUITE_P(Every, ScoreTermsOfWideNumbers, ::testing::ValuesIn(EveryBlock()),
                         [](const auto& info) { return info.param.name; });

// More pairs than are masked at once.
TEST_P(ScoreTermsOfWideNumbers, LargeTilesAreAddedRight) {
  at::manual_seed(1);
  Tensors t = RandomTensors(at::kDouble, 1, 2, 1, 700, 1500, 8, 8);
  t.terms.alibi_slopes = Slopes(2);
  t.terms.bias = RandomBias(t, 1, 2);
  Tile tile = WholeTile(t);
  Check(t, tile);
  tile.hi = 600;
  Check(t, tile);
  tile.lo = -300;
  Check(t, tile);
}

}  // namespace
}  // namespace ringserve::test
