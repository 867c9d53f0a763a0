#include "worker/attention/backward_block.h"

#include <cmath>
#include <limits>

#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include "tests/support/random.h"
#include "tests/worker/attention/every_block.h"

namespace ringserve::test {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// The block that the present test is about.
const ringserve::Block* tested = nullptr;

// A band over all queries and keys, and what the pass is given; fp64 but for `type`'s own rounding.
struct Problem {
  at::ScalarType type = at::kDouble;
  at::Tensor q, k, v, d_out, d_lse;  // of `type`; d_lse accumulated
  at::Tensor bias, slopes, sinks;    // undefined: none
  int64_t lo = 0, hi = 0, distance = 0;
  double scale = 1;

  at::ScalarType wide() const { return type == at::kDouble ? at::kDouble : at::kFloat; }
  int64_t queries() const { return q.size(2); }
  int64_t keys() const { return k.size(2); }
};

// All in fp64, dense.
struct Answer {
  at::Tensor weights, out, lse, hidden;
};

at::Tensor Repeated(const at::Tensor& t, const Problem& p) {
  return t.to(at::kDouble).repeat_interleave(p.q.size(1) / p.k.size(1), 1);
}

Answer Attended(const Problem& p) {
  const at::Tensor i = at::arange(p.queries()).view({-1, 1}), j = at::arange(p.keys());
  at::Tensor hidden = (j - i < p.lo).logical_or(j - i > p.hi);
  at::Tensor scores = at::matmul(p.q.to(at::kDouble), Repeated(p.k, p).transpose(2, 3)) * p.scale;
  if (p.slopes.defined()) {
    scores = scores - p.slopes.to(at::kDouble).view({1, -1, 1, 1}) * (p.distance + i - j).abs();
  }
  if (p.bias.defined() && p.bias.scalar_type() == at::kBool) {
    hidden = hidden.logical_or(p.bias.logical_not());
  } else if (p.bias.defined()) {
    scores = scores + p.bias.to(at::kDouble);
  }
  scores = scores.masked_fill(hidden, -kInfinity);
  at::Tensor lse = scores.logsumexp(-1);
  if (p.sinks.defined()) {
    lse = at::logaddexp(lse, p.sinks.to(at::kDouble).view({1, -1, 1}).expand_as(lse));
  }
  const at::Tensor unseen = scores.isneginf();
  const at::Tensor weights = (scores - lse.unsqueeze(-1)).exp().masked_fill(unseen, 0);
  return {weights, at::matmul(weights, Repeated(p.v, p)), lse, unseen};
}

double Loss(const Problem& p) {
  const Answer answer = Attended(p);
  const at::Tensor of_lse =
      (answer.lse * p.d_lse.to(at::kDouble)).masked_fill(answer.lse.isneginf(), 0);
  return ((answer.out * p.d_out.to(at::kDouble)).sum() + of_lse.sum()).item<double>();
}

struct AllGradients {
  at::Tensor d_q, d_k, d_v, d_sinks;
};

at::Tensor SummedOverGroups(const at::Tensor& t, const Problem& p) {
  return t.view({t.size(0), p.k.size(1), -1, t.size(2), t.size(3)}).sum(2);
}

// By the formulas, dense, in fp64.
AllGradients Expected(const Problem& p) {
  const Answer a = Attended(p);
  const at::Tensor d_out = p.d_out.to(at::kDouble);
  const at::Tensor delta = (d_out * a.out).sum(-1) - p.d_lse.to(at::kDouble);
  const at::Tensor d_weights = at::matmul(d_out, Repeated(p.v, p).transpose(2, 3));
  const at::Tensor d_scores = a.weights * (d_weights - delta.unsqueeze(-1));
  AllGradients g;
  g.d_v = SummedOverGroups(at::matmul(a.weights.transpose(2, 3), d_out), p);
  g.d_q = at::matmul(d_scores, Repeated(p.k, p)) * p.scale;
  g.d_k = SummedOverGroups(at::matmul(d_scores.transpose(2, 3), p.q.to(at::kDouble)) * p.scale, p);
  if (p.sinks.defined()) {
    const at::Tensor weight = (p.sinks.to(at::kDouble).view({1, -1, 1}) - a.lse).exp();
    g.d_sinks = -(weight * delta).sum(at::IntArrayRef{0, 2});
  }
  return g;
}

// The pass itself, over tiles of `q_step` queries and `k_step` keys, given the exact answer.
AllGradients Computed(const Problem& p, int64_t q_step, int64_t k_step) {
  const Answer a = Attended(p);
  const at::TensorOptions wide = at::TensorOptions().dtype(p.wide());
  AllGradients g = {
      at::zeros(p.q.sizes(), wide), at::zeros(p.k.sizes(), wide), at::zeros(p.v.sizes(), wide), {}};
  const AnsweredQueries queries = {p.q, p.d_out, a.lse.to(p.wide()),
                                   RowDeltas(a.out.to(p.wide()), p.d_out.to(p.wide()), p.d_lse)};
  for (int64_t i = 0; i < p.queries(); i += q_step) {
    for (int64_t j = 0; j < p.keys(); j += k_step) {
      const Tile tile = {.q_begin = i,
                         .q_end = std::min(p.queries(), i + q_step),
                         .k_begin = j,
                         .k_end = std::min(p.keys(), j + k_step),
                         .lo = p.lo + i - j,
                         .hi = p.hi + i - j,
                         .k_position = j,
                         .distance = p.distance + i - j};
      tested->AccumulateGradients({g.d_q, g.d_k, g.d_v}, queries, p.k, p.v, tile, p.scale,
                                  {.bias = p.bias, .alibi_slopes = p.slopes});
    }
  }
  if (p.sinks.defined()) g.d_sinks = SinkGradients(p.sinks, queries.lse, queries.delta);
  return g;
}

Problem RandomProblem(uint64_t seed, int64_t most_rows) {
  Random random(seed);
  at::manual_seed(seed);
  Problem p;
  p.type = random.Pick({at::kFloat, at::kFloat, at::kDouble, at::kBFloat16, at::kHalf});
  const int64_t batch = random.Between(1, 2), kv_heads = random.Between(1, 3);
  const int64_t heads = kv_heads * random.Pick({1, 1, 2, 3});
  const int64_t dim = random.BetweenByMagnitude(1, 140), value_dim = random.Between(1, 70);
  const int64_t queries = random.BetweenByMagnitude(1, most_rows);
  const int64_t keys = random.BetweenByMagnitude(1, most_rows);
  const bool token_major = random.Chance(0.3);
  const auto make = [&](int64_t of_heads, int64_t rows, int64_t width) {
    if (!token_major) return at::randn({batch, of_heads, rows, width}).to(p.type);
    return at::randn({batch, rows, of_heads, width}).to(p.type).transpose(1, 2);
  };
  p.q = make(heads, queries, dim);
  p.k = make(kv_heads, keys, dim);
  p.v = make(kv_heads, keys, value_dim);
  p.d_out = make(heads, queries, value_dim);
  p.d_lse = at::randn({batch, heads, queries}, p.wide());
  p.lo = random.Chance(0.5) ? -queries : random.Between(-queries, keys / 2);
  p.hi = random.Chance(0.4) ? keys : random.Between(p.lo, keys);
  p.scale = random.Pick({1 / std::sqrt(static_cast<double>(dim)), 0.1, -0.1, 0.0});
  p.distance = random.Between(-20, 20);
  if (random.Chance(0.3)) p.slopes = at::rand({heads}, at::kFloat) * 0.1;
  if (random.Chance(0.3)) p.sinks = at::randn({heads}, at::kFloat);
  if (random.Chance(0.3)) {
    p.bias =
        at::randn({random.Chance(0.5) ? batch : 1, random.Chance(0.5) ? heads : 1, queries, keys});
    const at::Tensor shown = p.bias < 1;
    p.bias =
        random.Chance(0.4) ? shown : p.bias.masked_fill(shown.logical_not(), -kInfinity).to(p.type);
  }
  return p;
}

// Within a share of the largest number expected, and of what was summed up to it.
void ExpectNear(const char* name, const at::Tensor& actual, const at::Tensor& expected,
                double tolerance) {
  if (expected.numel() == 0) return;
  const double largest = std::max(1.0, expected.abs().max().item<double>());
  const double error = (actual.to(at::kDouble) - expected).abs().max().item<double>();
  EXPECT_LE(error, tolerance * largest) << name;  // NaN is not
}

void ExpectNear(const AllGradients& actual, const AllGradients& expected, at::ScalarType wide) {
  const double tolerance = wide == at::kDouble ? 1e-13 : 2e-5;
  ExpectNear("d_q", actual.d_q, expected.d_q, tolerance);
  ExpectNear("d_k", actual.d_k, expected.d_k, tolerance);
  ExpectNear("d_v", actual.d_v, expected.d_v, tolerance);
  if (expected.d_sinks.defined())
    ExpectNear("d_sinks", actual.d_sinks, expected.d_sinks, tolerance);
}

class ThreadCount {
 public:
  explicit ThreadCount(int threads) : before_(at::get_num_threads()) {
    at::set_num_threads(threads);
  }
  ~ThreadCount() { at::set_num_threads(before_); }

 private:
  const int before_;
};

class BackwardBlock : public ::testing::TestWithParam<NamedBlock> {
 protected:
  void SetUp() override { tested = GetParam().block; }
};

INSTANTIATE_TEST_SUITE_P(Every, BackwardBlock, ::testing::ValuesIn(EveryBlock()),
                         [](const auto& info) { return info.param.name; });

TEST_P(BackwardBlock, GivesTheGradientsOfDenseAttentionHoweverItIsTiled) {
  for (uint64_t seed = 0; seed < 300; ++seed) {
    SCOPED_TRACE(seed);
    Random random(seed + 1'000'000);
    const Problem p = RandomProblem(seed, 90);
    const ThreadCount threads(static_cast<int>(random.Between(1, 4)));
    ExpectNear(Computed(p, random.Between(1, p.queries()), random.Between(1, p.keys())),
               Expected(p), p.wide());
    if (HasFailure()) return;
  }
}

// Past the sizes of its own blocks of queries and keys.
TEST_P(BackwardBlock, GivesTheGradientsOfLongTiles) {
  for (uint64_t seed = 0; seed < 24; ++seed) {
    SCOPED_TRACE(seed);
    const Problem p = RandomProblem(1000 + seed, 1500);
    const ThreadCount threads(1 + static_cast<int>(seed % 3));
    ExpectNear(Computed(p, p.queries(), p.keys()), Expected(p), p.wide());
    if (HasFailure()) return;
  }
}

TEST_P(BackwardBlock, AgreesWithFiniteDifferences) {
  for (uint64_t seed = 0; seed < 60; ++seed) {
    SCOPED_TRACE(seed);
    Problem p = RandomProblem(2000 + seed, 24);
    p.type = at::kDouble;
    for (at::Tensor* t : {&p.q, &p.k, &p.v, &p.d_out, &p.d_lse}) *t = t->to(at::kDouble);
    if (p.bias.defined() && p.bias.scalar_type() != at::kBool) p.bias = p.bias.to(at::kDouble);
    const AllGradients g = Computed(p, 7, 5);
    if (p.sinks.defined()) p.sinks = p.sinks.to(at::kDouble);  // steps finer than fp32's
    const std::pair<at::Tensor Problem::*, at::Tensor> of[] = {{&Problem::q, g.d_q},
                                                               {&Problem::k, g.d_k},
                                                               {&Problem::v, g.d_v},
                                                               {&Problem::sinks, g.d_sinks}};
    for (const auto& [member, gradient] : of) {
      if (!gradient.defined()) continue;
      const at::Tensor direction = at::randn((p.*member).sizes(), at::kDouble);
      constexpr double kStep = 1e-5;
      Problem more = p, less = p;
      more.*member = p.*member + kStep * direction;
      less.*member = p.*member - kStep * direction;
      const double slope = (Loss(more) - Loss(less)) / (2 * kStep);
      EXPECT_NEAR((gradient * direction).sum().item<double>(), slope,
                  1e-6 * (1 + gradient.abs().sum().item<double>()));
    }
  }
}

Problem CausalProblem(at::ScalarType type, int64_t rows, int64_t heads = 2) {
  at::manual_seed(5);
  Problem p;
  p.type = type;
  for (at::Tensor* t : {&p.q, &p.k, &p.v, &p.d_out}) *t = at::randn({1, heads, rows, 32}).to(type);
  p.d_lse = at::zeros({1, heads, rows}, p.wide());
  p.lo = -rows;
  p.scale = 0.2;
  return p;
}

TEST_P(BackwardBlock, LeavesRowsThatSeeNothingAtZeroWhateverTheirGradientIs) {
  Problem p = CausalProblem(at::kFloat, 40);
  p.hi = -10;  // the first ten rows see no key
  const AllGradients expected = Expected(p);
  p.d_out.narrow(2, 0, 10).fill_(std::nan(""));
  const AllGradients g = [&] {
    Problem finite = p;
    finite.d_out = p.d_out.nan_to_num();
    const Answer a = Attended(finite);
    AllGradients sums = {at::zeros_like(p.q), at::zeros_like(p.k), at::zeros_like(p.v), {}};
    tested->AccumulateGradients(
        {sums.d_q, sums.d_k, sums.d_v},
        {p.q, p.d_out, a.lse.to(at::kFloat), RowDeltas(a.out.to(at::kFloat), p.d_out, p.d_lse)},
        p.k, p.v, {.q_end = 40, .k_end = 40, .hi = -10}, p.scale, {});
    return sums;
  }();
  ExpectNear(g, expected, at::kFloat);
  EXPECT_EQ(g.d_q.narrow(2, 0, 10).count_nonzero().item<int64_t>(), 0);
  EXPECT_EQ(g.d_k.narrow(2, 30, 10).count_nonzero().item<int64_t>(), 0);  // seen by nobody
}

TEST_P(BackwardBlock, GivesARowThatSeesItsSinkAloneTheSinksGradientAlone) {
  Problem p = CausalProblem(at::kFloat, 8);
  p.hi = -8;  // nobody sees a key
  p.sinks = at::tensor({0.5, -kInfinity}, at::kFloat);
  p.d_lse.fill_(1);
  const AllGradients g = Computed(p, 8, 8);
  EXPECT_EQ(g.d_q.count_nonzero().item<int64_t>(), 0);
  EXPECT_EQ(g.d_v.count_nonzero().item<int64_t>(), 0);
  EXPECT_EQ(g.d_sinks[0].item<float>(), 8);  // lse is the logit itself
  EXPECT_EQ(g.d_sinks[1].item<float>(), 0);
}

TEST_P(BackwardBlock, GivesTheSameBitsEachTime) {
  const ThreadCount threads(3);
  Problem p = CausalProblem(at::kFloat, 700, 1);  // one head: threads share its queries
  const AllGradients first = Computed(p, 700, 700), second = Computed(p, 700, 700);
  EXPECT_TRUE(first.d_q.equal(second.d_q));
  EXPECT_TRUE(first.d_k.equal(second.d_k));
  EXPECT_TRUE(first.d_v.equal(second.d_v));
}

TEST_P(BackwardBlock, KeepsWeightsBelowOneWhereScoresAreLarge) {
  Problem p = CausalProblem(at::kFloat, 64);
  p.q.mul_(1e4);
  const AllGradients g = Computed(p, 64, 64);
  const double most = p.d_out.abs().sum().item<double>();
  EXPECT_LE(g.d_v.abs().max().item<double>(), most);
  EXPECT_TRUE(g.d_q.isfinite().all().item<bool>());
}

TEST_P(BackwardBlock, RefusesSumsThatAreNotWide) {
  const Problem p = CausalProblem(at::kBFloat16, 8);
  const Answer a = Attended(p);
  const AnsweredQueries queries = {p.q, p.d_out, a.lse.to(at::kFloat),
                                   RowDeltas(a.out.to(at::kBFloat16), p.d_out, p.d_lse)};
  EXPECT_THROW(
      tested->AccumulateGradients({at::zeros_like(p.q), at::zeros_like(p.k), at::zeros_like(p.v)},
                                  queries, p.k, p.v, {.q_end = 8, .k_end = 8}, p.scale, {}),
      c10::Error);
}

}  // namespace
}  // namespace ringserve::test
