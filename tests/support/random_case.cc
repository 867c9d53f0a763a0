#include "tests/support/random_case.h"

#include "absl/strings/str_cat.h"
#include "tests/support/random.h"
#include "tests/support/random_mask.h"

namespace ringserve::test {
namespace {

void SetDims(Random& random, int64_t most_rows, v1::AttentionSpec& spec) {
  spec.set_batch(random.Pick({1, 1, 1, 2, 3}));
  spec.set_kv_heads(random.Pick({1, 1, 2, 3}));
  spec.set_q_heads(spec.kv_heads() * random.Pick({1, 1, 2, 4}));
  const auto length = [&] {
    return random.Chance(0.25) ? random.Between(1, 6) : random.BetweenByMagnitude(1, most_rows);
  };
  spec.set_q_len(length());
  spec.set_kv_len(random.Chance(0.5) ? spec.q_len() : length());
  const auto dim = [&] {
    return random.Chance(0.4) ? random.Pick({1, 8, 16, 32, 64, 80, 128})
                              : random.BetweenByMagnitude(1, 160);
  };
  spec.set_head_dim(dim());
  if (random.Chance(0.4)) spec.set_value_dim(random.Chance(0.3) ? spec.head_dim() : dim());
}

void SetScale(Random& random, v1::AttentionSpec& spec) {
  if (random.Chance(0.7)) return;
  const double normal = spec.head_dim() > 64 ? 0.1 : 0.2;
  spec.set_scale(random.Pick({0.0, -normal, normal, normal * random.Normal(), 1e-3, 1.0}));
}

// What balancers are told beyond their name.
void SetCutting(Random& random, v1::AttentionOptions& options) {
  if (random.Chance(0.5)) options.set_ptrr_block(random.BetweenByMagnitude(1, 64));
  options.set_ptrr_count_blocks(random.Chance(0.3));
  if (!random.Chance(0.25)) return;
  for (int rank = 0; rank < options.workers(); ++rank)
    options.add_worker_weights(0.2 + random.Fraction() * random.Pick({0.1, 1.0, 5.0}));
}

}  // namespace

std::string Case::ToString() const {
  return absl::StrCat("seed ", seed, ": spec {", spec.ShortDebugString(), "} options {",
                      options.ShortDebugString(), "} gain ", gain);
}

void AddRandomExtras(Case& c) {
  Random random(c.seed + 1'000'000'007);
  const int64_t which = random.Between(1, 7);
  if (which & 1) {
    c.spec.mutable_bias()->set_boolean(random.Chance(0.4));
    c.spec.mutable_bias()->set_per_batch(random.Chance(0.5));
    c.spec.mutable_bias()->set_per_head(random.Chance(0.5));
    if (c.options.rotate() == v1::ROTATE_METHOD_PASS_Q) c.options.clear_rotate();
  }
  c.spec.set_alibi_slopes((which & 2) != 0);
  c.spec.set_sink_logits((which & 4) != 0);
  c.options.set_lse_without_sinks(random.Chance(0.3));
}

Case RandomCase(uint64_t seed, int most_workers, int64_t most_rows) {
  Random random(seed);
  Case c;
  c.seed = seed;
  SetDims(random, most_rows, c.spec);
  c.spec.set_dtype(
      random.Pick({v1::DTYPE_F32, v1::DTYPE_F32, v1::DTYPE_F64, v1::DTYPE_BF16, v1::DTYPE_F16}));
  c.spec.set_tensor_layout(
      random.Pick({v1::TENSOR_LAYOUT_UNSPECIFIED, v1::TENSOR_LAYOUT_BHSD, v1::TENSOR_LAYOUT_BSHD}));
  SetScale(random, c.spec);
  const auto mask = [&] { return RandomMask(random, c.spec.q_len(), c.spec.kv_len()); };
  if (random.Chance(0.2)) {
    for (int64_t b = 0; b < c.spec.batch(); ++b) *c.spec.add_masks() = mask();
  } else if (random.Chance(0.8)) {
    *c.spec.add_masks() = mask();
  }
  c.options.set_balancer(
      random.Pick({v1::BALANCER_UNSPECIFIED, v1::BALANCER_AUTO, v1::BALANCER_CONTIGUOUS,
                   v1::BALANCER_CONTIGUOUS, v1::BALANCER_HEAD_TAIL, v1::BALANCER_HEAD_TAIL,
                   v1::BALANCER_PER_DOCUMENT, v1::BALANCER_PTRR, v1::BALANCER_PTRR}));
  c.options.set_rotate(random.Pick({v1::ROTATE_METHOD_UNSPECIFIED, v1::ROTATE_METHOD_AUTO,
                                    v1::ROTATE_METHOD_ALL_TO_ALL, v1::ROTATE_METHOD_ALL_TO_ALL,
                                    v1::ROTATE_METHOD_ALL_GATHER, v1::ROTATE_METHOD_ALL_GATHER,
                                    v1::ROTATE_METHOD_PASS_Q, v1::ROTATE_METHOD_PASS_Q}));
  c.options.set_workers(static_cast<int32_t>(random.Between(0, most_workers)));
  SetCutting(random, c.options);
  c.options.set_return_lse(true);
  c.gain = random.Pick({1.0, 1.0, 0.1, 4.0});
  return c;
}

}  // namespace ringserve::test
