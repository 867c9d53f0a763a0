#include "worker/attention/block.h"

#include <cmath>
#include <limits>
#include <tuple>

#include <gtest/gtest.h>

#include "tests/support/random.h"
#include "tests/worker/attention/every_block.h"

namespace ringserve::test {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr int64_t kUnbounded = int64_t{1} << 50;

bool Sees(const Tile& tile, int64_t q, int64_t k) {
  const int64_t diagonal = (k - tile.k_begin) - (q - tile.q_begin);
  return q >= tile.q_begin && q < tile.q_end && k >= tile.k_begin && k < tile.k_end &&
         diagonal >= tile.lo.value_or(-kUnbounded) && diagonal <= tile.hi.value_or(kUnbounded);
}

// Dense, in fp64: rows that see nothing have lse -inf and out 0.
Partial Expected(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                 const std::vector<Tile>& tiles, double scale) {
  const int64_t group = q.size(1) / k.size(1);
  const at::Tensor hidden = at::ones({q.size(2), k.size(2)}, at::kBool);
  auto at = hidden.accessor<bool, 2>();
  for (const Tile& tile : tiles) {
    for (int64_t i = tile.q_begin; i < tile.q_end; ++i) {
      for (int64_t j = tile.k_begin; j < tile.k_end; ++j) at[i][j] = at[i][j] && !Sees(tile, i, j);
    }
  }
  const at::Tensor keys = k.to(at::kDouble).repeat_interleave(group, 1);
  const at::Tensor values = v.to(at::kDouble).repeat_interleave(group, 1);
  const at::Tensor scores =
      (at::matmul(q.to(at::kDouble), keys.transpose(2, 3)) * scale).masked_fill(hidden, -kInfinity);
  const at::Tensor lse = scores.logsumexp(-1);
  const at::Tensor weights = (scores - lse.unsqueeze(-1)).exp().masked_fill(hidden, 0);
  return {at::matmul(weights, values), lse};
}

struct Tensors {
  at::Tensor q, k, v;
};

Tensors RandomTensors(at::ScalarType type, int64_t batch, int64_t q_heads, int64_t kv_heads,
                      int64_t queries, int64_t keys, int64_t dim, int64_t value_dim) {
  const auto make = [&](int64_t heads, int64_t rows, int64_t width) {
    return at::randn({batch, heads, rows, width}).to(type);
  };
  return {make(q_heads, queries, dim), make(kv_heads, keys, dim), make(kv_heads, keys, value_dim)};
}

// The block that the present test is about.
const ringserve::Block* tested = nullptr;

void Add(const Partial& into, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
         const Tile& tile, double scale) {
  tested->Accumulate(into, q, k, v, tile, scale, {});
}

Partial Nothing(const Tensors& t) {
  const at::ScalarType type = t.q.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const Partial into = {
      at::full({t.q.size(0), t.q.size(1), t.q.size(2), t.v.size(3)}, std::nan(""), type),
      at::empty({t.q.size(0), t.q.size(1), t.q.size(2)}, type)};
  Clear(into);
  return into;
}

void ExpectNear(const Partial& actual, const Partial& expected, at::ScalarType type) {
  const at::Tensor out = at::empty_like(actual.out);
  Finalize(actual, out);
  const double tolerance = type == at::kDouble ? 1e-13 : type == at::kFloat ? 3e-5 : 4e-2;
  const at::Tensor unseen = expected.lse.isneginf();
  ASSERT_TRUE(actual.lse.isneginf().equal(unseen));
  EXPECT_LT((out.to(at::kDouble) - expected.out).abs().max().item<double>(), tolerance);
  EXPECT_LT(
      (actual.lse.to(at::kDouble) - expected.lse).masked_fill(unseen, 0).abs().max().item<double>(),
      type == at::kDouble  ? 1e-13
      : type == at::kFloat ? 3e-5
                           : 1e-3);
}

void Check(const Tensors& t, const std::vector<Tile>& tiles) {
  const double scale = 1 / std::sqrt(t.q.size(3));
  const Partial into = Nothing(t);
  for (const Tile& tile : tiles) Add(into, t.q, t.k, t.v, tile, scale);
  ExpectNear(into, Expected(t.q, t.k, t.v, tiles, scale), t.q.scalar_type());
}

class BlockOfType : public ::testing::TestWithParam<std::tuple<NamedBlock, at::ScalarType>> {
 protected:
  void SetUp() override {
    at::manual_seed(1);
    tested = std::get<0>(GetParam()).block;
  }
  at::ScalarType type() const { return std::get<1>(GetParam()); }
};

TEST_P(BlockOfType, OfEachKindIsAddedRight) {
  const Tensors t = RandomTensors(type(), 2, 4, 2, 40, 50, 16, 16);
  const Tile tiles[] = {
      {.q_end = 40, .k_end = 50},                                        // full
      {.q_begin = 3, .q_end = 30, .k_begin = 7, .k_end = 9},             // a small one inside
      {.q_end = 40, .k_end = 40, .hi = 0},                               // causal
      {.q_begin = 5, .q_end = 35, .k_begin = 20, .k_end = 30, .hi = 0},  // rows below see all
      {.q_end = 40, .k_end = 50, .hi = 10},  // a rectangle and a causal square
      {.q_end = 40, .k_end = 50, .hi = -7},  // the first rows see nothing
      {.q_end = 40, .k_end = 50, .lo = 3},   // the last keys, fewer and fewer
      {.q_end = 40, .k_end = 50, .lo = -4, .hi = 2},
      {.q_end = 40, .k_end = 50, .lo = 0, .hi = 0},
      {.q_end = 1, .k_end = 1},
      {.q_begin = 39, .q_end = 40, .k_begin = 49, .k_end = 50, .lo = 0, .hi = 0},
  };
  for (const Tile& tile : tiles) Check(t, {tile});
}

TEST_P(BlockOfType, AfterBlockGivesTheWhole) {
  const Tensors t = RandomTensors(type(), 1, 2, 1, 30, 30, 24, 24);
  Check(t, {{.q_end = 30, .k_end = 10, .hi = 0},
            {.q_begin = 10, .q_end = 30, .k_begin = 10, .k_end = 20, .hi = 0},
            {.q_begin = 20, .q_end = 30, .k_begin = 20, .k_end = 30, .hi = 0}});
}

TEST_P(BlockOfType, PadsValueDimsThatDiffer) {
  for (const auto& [dim, value_dim] : {std::pair{8, 24}, {24, 8}, {1, 3}, {3, 1}, {64, 33}}) {
    const Tensors t = RandomTensors(type(), 1, 2, 2, 9, 11, dim, value_dim);
    Check(t, {{.q_end = 9, .k_end = 11, .hi = 2}});
  }
}

TEST_P(BlockOfType, TakesAnyStrides) {
  const Tensors t = RandomTensors(type(), 2, 4, 2, 20, 20, 8, 8);
  const auto token_major = [](const at::Tensor& tensor) {
    return tensor.transpose(1, 2).contiguous().transpose(1, 2);
  };
  const auto with_gaps = [](const at::Tensor& tensor) {
    at::Tensor wide = at::zeros(
        {tensor.size(0), tensor.size(1), tensor.size(2) + 3, tensor.size(3) + 5}, tensor.options());
    return wide.narrow(2, 1, tensor.size(2)).narrow(3, 2, tensor.size(3)).copy_(tensor);
  };
  const std::vector<Tile> tiles = {{.q_begin = 2, .q_end = 20, .k_begin = 3, .k_end = 20, .hi = 1}};
  Check({token_major(t.q), token_major(t.k), token_major(t.v)}, tiles);
  Check({with_gaps(t.q), with_gaps(t.k), with_gaps(t.v)}, tiles);
}

INSTANTIATE_TEST_SUITE_P(Every, BlockOfType,
                         ::testing::Combine(::testing::ValuesIn(EveryBlock()),
                                            ::testing::Values(at::kFloat, at::kDouble,
                                                              at::kBFloat16, at::kHalf)),
                         [](const auto& info) {
                           return std::get<0>(info.param).name +
                                  c10::toString(std::get<1>(info.param));
                         });

class Blocks : public ::testing::TestWithParam<NamedBlock> {
 protected:
  void SetUp() override { tested = GetParam().block; }
};

INSTANTIATE_TEST_SUITE_P(Every, Blocks, ::testing::ValuesIn(EveryBlock()),
                         [](const auto& info) { return info.param.name; });

TEST_P(Blocks, OfRandomTilesAreAddedRight) {
  Random random(1);
  at::manual_seed(1);
  for (int i = 0; i < 300; ++i) {
    const int64_t queries = random.Between(1, 40), keys = random.Between(1, 40);
    const Tensors t = RandomTensors(random.Pick({at::kFloat, at::kDouble}), random.Between(1, 2), 4,
                                    random.Pick({1, 2, 4}), queries, keys, random.Between(1, 20),
                                    random.Between(1, 20));
    Tile tile;
    tile.q_begin = random.Between(0, queries - 1);
    tile.q_end = random.Between(tile.q_begin + 1, queries);
    tile.k_begin = random.Between(0, keys - 1);
    tile.k_end = random.Between(tile.k_begin + 1, keys);
    if (random.Chance(0.6)) tile.hi = random.Between(-queries, keys);
    if (random.Chance(0.4)) tile.lo = random.Between(-queries, keys);
    SCOPED_TRACE(i);
    Check(t, {tile});
  }
}

// More than is masked at once, and more than the kernels' own blocks.
TEST_P(Blocks, OfLargeTilesAreAddedRight) {
  at::manual_seed(1);
  for (const at::ScalarType type : {at::kFloat, at::kDouble}) {
    const Tensors t = RandomTensors(type, 1, 1, 1, 1300, 2600, 8, 8);
    for (const Tile& tile : {Tile{.q_end = 1300, .k_end = 2600, .lo = -100, .hi = 1500},
                             Tile{.q_end = 1300, .k_end = 2600, .lo = 700},
                             Tile{.q_end = 1300, .k_end = 1300, .hi = 0},
                             Tile{.q_end = 1300, .k_end = 2600, .hi = 1299},
                             Tile{.q_end = 1300, .k_end = 600, .hi = 0},
                             Tile{.q_end = 1300, .k_end = 2600, .lo = 3, .hi = 9}}) {
      Check(t, {tile});
    }
  }
}

TEST_P(Blocks, ThatShowNothingLeaveTheAccumulatorAsItWas) {
  at::manual_seed(1);
  const Tensors t = RandomTensors(at::kFloat, 1, 1, 1, 8, 8, 4, 4);
  const int64_t most = std::numeric_limits<int64_t>::max();
  const int64_t least = std::numeric_limits<int64_t>::min();
  for (const Tile& tile :
       {Tile{.q_end = 8, .k_end = 8, .hi = -8}, Tile{.q_end = 8, .k_end = 8, .lo = 8},
        Tile{.q_end = 8, .k_end = 8, .lo = 1, .hi = 0}, Tile{.q_end = 8, .k_end = 8, .lo = most},
        Tile{.q_end = 8, .k_end = 8, .hi = least}, Tile{.q_begin = 4, .q_end = 4, .k_end = 8}}) {
    const Partial into = Nothing(t);
    Add(into, t.q, t.k, t.v, tile, 1);
    EXPECT_TRUE(into.lse.isneginf().all().item<bool>());
    EXPECT_TRUE(into.out.isnan().all().item<bool>()) << "not even touched";
  }
  Check(t, {{.q_end = 8, .k_end = 8, .lo = least, .hi = most}});
}

TEST_P(Blocks, RefuseAScaleThatIsNotPositive) {
  const Tensors t = RandomTensors(at::kFloat, 1, 1, 1, 8, 8, 4, 4);
  for (const double scale : {0.0, -1.0, std::nan("")}) {
    EXPECT_THROW(Add(Nothing(t), t.q, t.k, t.v, {.q_end = 8, .k_end = 8}, scale), c10::Error);
  }
}

TEST_P(Blocks, RefuseRowsOutsideOfTheirTensors) {
  const Tensors t = RandomTensors(at::kFloat, 1, 1, 1, 8, 8, 4, 4);
  EXPECT_THROW(Add(Nothing(t), t.q, t.k, t.v, {.q_end = 9, .k_end = 8}, 1), c10::Error);
  EXPECT_THROW(Add(Nothing(t), t.q, t.k, t.v, {.q_end = 8, .k_end = 9}, 1), c10::Error);
}

// Such keys weigh nothing, whatever the kernel says of a row without a weight.
TEST_P(Blocks, WhoseScoresAreMinusInfinityWeighNothing) {
  at::manual_seed(1);
  for (const at::ScalarType type : {at::kFloat, at::kDouble, at::kBFloat16}) {
    const Tensors t = RandomTensors(type, 2, 4, 2, 6, 2000, 4, 4);
    t.q.abs_();
    for (const Tile& tile : {Tile{.q_end = 6, .k_end = 2000}, Tile{.q_end = 6, .k_end = 6, .hi = 0},
                             Tile{.q_begin = 3, .q_end = 6, .k_begin = 4, .k_end = 5},
                             Tile{.q_end = 6, .k_end = 9, .lo = 1, .hi = 2}}) {
      const Partial into = Nothing(t);
      Add(into, t.q, t.k, t.v, {.q_end = 6, .k_end = 50}, 1);
      const Partial before = {into.out.clone(), into.lse.clone()};
      Add(into, t.q, at::full_like(t.k, -kInfinity), t.v, tile, 1);
      EXPECT_TRUE(into.out.equal(before.out)) << type;
      EXPECT_TRUE(into.lse.equal(before.lse)) << type;
    }
  }
}

TEST_P(Blocks, WithSomeScoresOfMinusInfinityWeighTheRest) {
  at::manual_seed(1);
  for (const at::ScalarType type : {at::kFloat, at::kDouble}) {
    const Tensors t = RandomTensors(type, 1, 2, 1, 6, 2000, 4, 4);
    t.q.abs_();
    t.k.narrow(2, 0, 1999).fill_(-kInfinity);
    const Partial into = Nothing(t);
    Add(into, t.q, t.k, t.v, {.q_end = 6, .k_end = 2000}, 1);
    EXPECT_TRUE(into.out.allclose(t.v.narrow(2, 1999, 1).expand({1, 2, 6, 4})));
  }
}

// Scores and values of 0 are what the kernel's answer for a row without a weight looks like.
TEST_P(Blocks, OfZerosWeighAsMuchAsTheyDo) {
  for (const at::ScalarType type : {at::kFloat, at::kDouble, at::kBFloat16}) {
    const Tensors t = {at::zeros({1, 2, 3, 4}, type), at::zeros({1, 1, 3, 4}, type),
                       at::zeros({1, 1, 3, 4}, type)};
    Check(t, {{.q_end = 3, .k_end = 3, .hi = 0}});
    Check(t, {{.q_end = 3, .k_end = 1}});
  }
}

}  // namespace
}  // namespace ringserve::test
