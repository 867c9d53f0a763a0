// Which kernel a device's block gives its work, and what it makes of what the kernels say. That it
// computes what it is to: in the tests of every block.
#include "worker/attention/device_block.h"

#include <sys/mman.h>

#include <cmath>
#include <limits>
#include <memory>

#include <gtest/gtest.h>

#include "tests/worker/attention/fake_attention_kernels.h"
#include "worker/attention/cpu_block.h"

namespace ringserve::test {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

TEST(KernelFor, IsTheFastestThatIsExactEnough) {
  struct {
    at::ScalarType type;
    int64_t head_dim, value_dim;
    bool masked;
    int capability;
    AttentionKernel kernel;
  } const cases[] = {
      {at::kBFloat16, 128, 128, false, 80, AttentionKernel::kFlash},
      {at::kHalf, 64, 256, false, 90, AttentionKernel::kFlash},
      {at::kHalf, 3, 5, false, 90, AttentionKernel::kFlash},
      {at::kHalf, 64, 257, false, 90, AttentionKernel::kEfficient},
      {at::kBFloat16, 257, 1, false, 90, AttentionKernel::kEfficient},
      {at::kBFloat16, 128, 128, true, 90, AttentionKernel::kEfficient},
      {at::kHalf, 128, 128, false, 75, AttentionKernel::kEfficient},
      {at::kBFloat16, 128, 128, false, 75, AttentionKernel::kProducts},
      {at::kBFloat16, 128, 128, true, 75, AttentionKernel::kProducts},
      {at::kFloat, 128, 128, false, 90, AttentionKernel::kEfficient},
      {at::kFloat, 1000, 1, true, 75, AttentionKernel::kEfficient},
      {at::kDouble, 64, 64, false, 90, AttentionKernel::kProducts},
      {at::kDouble, 64, 64, true, 90, AttentionKernel::kProducts},
  };
  for (const auto& c : cases) {
    EXPECT_EQ(KernelFor(c.type, c.head_dim, c.value_dim, c.masked, c.capability), c.kernel)
        << c.type << " " << c.head_dim << " " << c.value_dim << " " << c.masked << " "
        << c.capability;
  }
}

struct Tensors {
  at::Tensor q, k, v;
};

Tensors RandomTensors(at::ScalarType type, int64_t q_heads, int64_t kv_heads, int64_t rows,
                      int64_t dim) {
  at::manual_seed(1);
  return {at::randn({1, q_heads, rows, dim}).to(type), at::randn({1, kv_heads, rows, dim}).to(type),
          at::randn({1, kv_heads, rows, dim}).to(type)};
}

Partial Nothing(const Tensors& t) {
  const at::ScalarType type = t.q.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const Partial into = {at::full(t.q.sizes(), std::nan(""), type),
                        at::empty({1, t.q.size(1), t.q.size(2)}, type)};
  Clear(into);
  return into;
}

// What is added to nothing, and the calls that it takes.
std::pair<Partial, KernelCalls> Added(const Tensors& t, const Tile& tile,
                                      const ScoreTerms& terms = {}, double scale = 0.2) {
  KernelCalls calls;
  const DeviceBlock block(std::make_unique<FakeAttentionKernels>(90, &calls), 90);
  const Partial into = Nothing(t);
  block.Accumulate(into, t.q, t.k, t.v, tile, scale, terms);
  return {into, calls};
}

void ExpectAsOnTheProcessor(const Partial& actual, const Tensors& t, const Tile& tile,
                            const ScoreTerms& terms, double tolerance) {
  const Partial expected = Nothing(t);
  CpuBlock().Accumulate(expected, t.q, t.k, t.v, tile, 0.2, terms);
  EXPECT_TRUE(actual.lse.allclose(expected.lse, tolerance, tolerance));
  const at::Tensor unseen = expected.lse.isneginf().unsqueeze(-1);
  EXPECT_TRUE(actual.out.masked_fill(unseen, 0).allclose(expected.out.masked_fill(unseen, 0),
                                                         tolerance, tolerance));
}

TEST(DeviceBlock, GivesACausalSquareToTheFlashKernelAsAWhole) {
  const auto [into, calls] =
      Added(RandomTensors(at::kBFloat16, 4, 2, 700, 32), {.q_end = 700, .k_end = 700, .hi = 0});
  EXPECT_EQ(calls.flash, 1);
  EXPECT_EQ(calls.efficient, 0);
}

TEST(DeviceBlock, NeverGivesTheFlashKernelACausalRectangle) {
  const Tensors t = RandomTensors(at::kHalf, 2, 1, 300, 16);
  for (const auto& [hi, pieces] : {std::pair{-100, 1}, {0, 2}, {100, 3}}) {
    const Tile tile = {.q_end = 300, .k_end = 200, .hi = hi};
    const auto [into, calls] = Added(t, tile);
    EXPECT_EQ(calls.flash, pieces) << "a square, and what is seen as a whole beside it";
    EXPECT_EQ(calls.efficient, 0);
    ExpectAsOnTheProcessor(into, t, tile, {}, 4e-3);
  }
}

// The efficient kernel's offsets have 32 bits.
TEST(DeviceBlock, CutsKeysThatLieFarApart) {
  constexpr int64_t kRow = int64_t{1} << 30;
  const Tensors t = RandomTensors(at::kFloat, 2, 1, 3, 8);
  const auto apart = [](const at::Tensor& dense) {
    const size_t bytes = 3 * kRow * sizeof(float);
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    TORCH_CHECK(memory != MAP_FAILED, "no addresses");
    const at::Tensor wide = at::from_blob(
        memory, dense.sizes(), {3 * kRow, 3 * kRow, kRow, 1},
        [bytes](void* data) { munmap(data, bytes); }, dense.options());
    return wide.copy_(dense);
  };
  const Tile tile = {.q_end = 3, .k_end = 3};
  const auto [into, calls] = Added({t.q, apart(t.k), apart(t.v)}, tile);
  EXPECT_EQ(calls.efficient, 3) << "one for each key";
  ExpectAsOnTheProcessor(into, t, tile, {}, 1e-5);
}

TEST(DeviceBlock, MasksTheEdgesOfAWindowAlone) {
  const Tensors t = RandomTensors(at::kBFloat16, 2, 1, 3000, 16);
  const Tile tile = {.q_end = 3000, .k_end = 3000, .lo = -1500, .hi = 0};
  const auto [into, calls] = Added(t, tile);
  EXPECT_GT(calls.flash, 0);
  EXPECT_GT(calls.efficient, 0);
  ExpectAsOnTheProcessor(into, t, tile, {}, 3e-2);
}

// 16 bits do not hold a distance.
TEST(DeviceBlock, DoesNotRoundAlibiToTheTypeOfTheNumbers) {
  const Tensors t = RandomTensors(at::kBFloat16, 2, 1, 600, 16);
  const Tile tile = {.q_end = 600, .k_end = 600, .hi = 0, .distance = 777};
  const ScoreTerms terms = {.bias = {}, .alibi_slopes = at::tensor({0.7f, 0.01f})};
  const auto [into, calls] = Added(t, tile, terms);
  EXPECT_EQ(calls.flash, 0);
  EXPECT_GT(calls.efficient, 0);
  ExpectAsOnTheProcessor(into, t, tile, terms, 2e-3);
}

TEST(DeviceBlock, UsesNoKernelForWideNumbers) {
  const Tensors t = RandomTensors(at::kDouble, 2, 1, 100, 16);
  const auto [into, calls] = Added(t, {.q_end = 100, .k_end = 100, .hi = 3});
  EXPECT_EQ(calls.flash + calls.efficient, 0);
  ExpectAsOnTheProcessor(into, t, {.q_end = 100, .k_end = 100, .hi = 3}, {}, 1e-12);
}

// A mask of the least finite numbers, as some write it: a row of nothing else is their mean, and
// the efficient kernel would say that its scores are all -inf.
TEST(DeviceBlock, DoesNotTakeTheLeastFiniteBiasForAHiddenPair) {
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
    const Tensors t = RandomTensors(type, 2, 1, 50, 8);
    const double least = type == at::kFloat ? std::numeric_limits<float>::lowest() : -3.38e38;
    const at::Tensor bias = at::zeros({1, 1, 50, 50}, type);
    bias.narrow(2, 10, 5).fill_(least);
    const ScoreTerms terms = {.bias = bias, .alibi_slopes = {}};
    const Tile tile = {.q_end = 50, .k_end = 50};
    const auto [into, calls] = Added(t, tile, terms);
    ExpectAsOnTheProcessor(into, t, tile, terms, 2e-3);
    EXPECT_FALSE(into.lse.isneginf().any().item<bool>());
  }
}

// Their lse is 0, and so is what the efficient kernel says of a row that is hidden.
TEST(DeviceBlock, KeepsRowsWhoseOnlyScoreIsZero) {
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
    Tensors t = RandomTensors(type, 1, 1, 40, 8);
    t.q.zero_();
    t.v.zero_();
    const at::Tensor shown = at::eye(40).to(at::kBool).view({1, 1, 40, 40}).clone();
    shown.select(2, 7).fill_(false);
    const auto [into, calls] =
        Added(t, {.q_end = 40, .k_end = 40}, {.bias = shown, .alibi_slopes = {}});
    EXPECT_GT(calls.efficient, 0);
    for (int64_t row = 0; row < 40; ++row)
      EXPECT_EQ(into.lse[0][0][row].item<float>(), row == 7 ? -kInfinity : 0.0) << row;
  }
}

// They are -inf, however small the scale is.
TEST(DeviceBlock, SeesNothingInScoresThatOverflowBeforeTheyAreScaled) {
  const Tensors t = RandomTensors(at::kFloat, 2, 1, 40, 8);
  t.q.fill_(-1e20);
  t.k.fill_(1e20);
  const Partial into = Added(t, {.q_end = 40, .k_end = 40}, {}, 1e-10).first;
  EXPECT_TRUE(into.lse.isneginf().all().item<bool>());
}

TEST(DeviceBlock, TellsNaNFromNothing) {
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16, at::kDouble}) {
    const Tensors t = RandomTensors(type, 2, 1, 40, 8);
    t.q[0][1][3][2].fill_(std::nan(""));
    t.q.select(2, 5).fill_(1);
    t.k.fill_(-kInfinity);
    const Partial into = Added(t, {.q_end = 40, .k_end = 40}).first;
    EXPECT_TRUE(into.lse[0][1][3].isnan().item<bool>()) << type;
    EXPECT_TRUE(into.out[0][1][3].isnan().all().item<bool>()) << type;
    EXPECT_TRUE(into.lse.select(2, 5).isneginf().all().item<bool>()) << type;
  }
}

}  // namespace
}  // namespace ringserve::test
