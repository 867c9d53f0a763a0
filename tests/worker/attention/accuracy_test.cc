// The claim: errors against fp64 are no larger than twice those of unsharded LibTorch on the same
// input, or what rounding the answer alone may cost, for every dtype, out and lse.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>
#include <string>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "tests/support/elements.h"
#include "tests/worker/attention/local_ring.h"

namespace ringserve::test {
namespace {

struct Kind {
  const char* name;
  double gain;  // of the queries
  bool values_cancel;
  bool terms = false;  // a bias and ALiBi slopes
};

constexpr Kind kKinds[] = {{"ordinary", 1, false},         {"peaked", 6, false},
                           {"scores up to 50", 11, false}, {"one-hot", 200, false},
                           {"cancelling", 1, true},        {"peaked and cancelling", 6, true},
                           {"biased", 1, false, true},     {"peaked and biased", 6, false, true}};

struct Setting {
  v1::DType dtype;
  at::ScalarType type;
  bool causal;
  Kind kind;
};

std::ostream& operator<<(std::ostream& out, const Setting& setting) {
  return out << setting.type << (setting.causal ? " causal " : " full ") << setting.kind.name;
}

v1::AttentionSpec SpecOf(const Setting& setting) {
  v1::AttentionSpec spec;
  spec.set_batch(1);
  spec.set_q_heads(2);
  spec.set_kv_heads(1);
  spec.set_q_len(640);
  spec.set_kv_len(640);
  spec.set_head_dim(64);
  spec.set_dtype(setting.dtype);
  if (setting.causal) spec.add_masks()->set_causal(true);
  if (setting.kind.terms) {
    spec.mutable_bias();
    spec.set_alibi_slopes(true);
  }
  return spec;
}

// Values that cancel are 100 + v for even keys and -100 + v for odd ones. Biases hide nothing: a
// row that sees no key is none to LibTorch.
Inputs InputsOf(const Setting& setting, const v1::AttentionSpec& spec, uint64_t seed) {
  Inputs inputs = RandomInputs(spec, seed, setting.kind.gain);
  if (setting.kind.terms) {
    std::vector<double> bias = ToDoubles(inputs.bias, spec.dtype());
    for (size_t i = 0; i < bias.size(); ++i) bias[i] = std::sin(static_cast<double>(seed + i));
    inputs.bias = FromDoubles(bias, spec.dtype());
  }
  if (!setting.kind.values_cancel) return inputs;
  std::vector<double> values = ToDoubles(inputs.v, spec.dtype());
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] += i / spec.head_dim() % 2 == 0 ? 100 : -100;
  }
  inputs.v = FromDoubles(values, spec.dtype());
  return inputs;
}

std::vector<std::byte> BytesOf(const at::Tensor& tensor) {
  const at::Tensor dense = tensor.contiguous();
  std::vector<std::byte> bytes(dense.nbytes());
  std::memcpy(bytes.data(), dense.const_data_ptr(), bytes.size());
  return bytes;
}

// What LibTorch takes for a bias, slopes and the causal mask: [1, 2, S, S], fp32 or fp64.
std::optional<at::Tensor> MaskOfTerms(const Setting& setting, const v1::AttentionSpec& spec,
                                      const Inputs& inputs) {
  if (!setting.kind.terms) return std::nullopt;
  const int64_t length = spec.q_len();
  const auto numbers = [](const std::vector<std::byte>& bytes, v1::DType dtype) {
    const std::vector<double> doubles = ToDoubles(bytes, dtype);
    return at::tensor(doubles, at::kDouble);
  };
  const at::Tensor slopes = numbers(inputs.alibi_slopes, v1::DTYPE_F32).view({1, 2, 1, 1});
  const at::Tensor position = at::arange(length);
  const at::Tensor distance = position.unsqueeze(1) - position;
  at::Tensor mask =
      numbers(inputs.bias, spec.dtype()).view({1, 1, length, length}) - slopes * distance.abs();
  if (setting.causal) mask.masked_fill_(distance.lt(0), -INFINITY);
  return mask.to(setting.type == at::kDouble ? at::kDouble : at::kFloat);
}

Errors ErrorsOfLibTorch(const Setting& setting, const v1::AttentionSpec& spec, Inputs inputs,
                        const Reference& reference) {
  const auto tensor = [&](std::vector<std::byte>& bytes, int64_t heads) {
    return at::from_blob(bytes.data(), {1, heads, spec.q_len(), spec.head_dim()},
                         at::TensorOptions().dtype(setting.type));
  };
  const std::optional<at::Tensor> mask = MaskOfTerms(setting, spec, inputs);
  const auto [out, lse] = at::_scaled_dot_product_flash_attention_for_cpu(
      tensor(inputs.q, 2), tensor(inputs.k, 1), tensor(inputs.v, 1), 0.0, setting.causal && !mask,
      mask);
  return ErrorsOf(spec, reference, BytesOf(out), BytesOf(lse));
}

double Largest(const std::vector<double>& numbers) {
  double largest = 0;
  for (const double number : numbers) largest = std::max(largest, std::abs(number));
  return largest;
}

// Half a unit in the last place of the largest number. Nothing is wider than fp64: there the lse of
// each worker's keys is rounded, too, a logarithm and a sum.
Errors Floor(const v1::AttentionSpec& spec, const Reference& reference, int workers) {
  const bool widest = spec.dtype() == v1::DTYPE_F64;
  const double lse = UnitRoundoff(widest ? v1::DTYPE_F64 : v1::DTYPE_F32) * Largest(reference.lse);
  return {UnitRoundoff(spec.dtype()) * Largest(reference.out),
          widest ? (1 + 2 * workers) * lse : lse};
}

class Accuracy : public ::testing::TestWithParam<Setting> {};

TEST_P(Accuracy, StaysNearLibTorchs) {
  const v1::AttentionSpec spec = SpecOf(GetParam());
  for (uint64_t seed = 1; seed <= 2; ++seed) {
    const Inputs inputs = InputsOf(GetParam(), spec, seed);
    const Reference reference = Attend(spec, inputs);
    const Errors libtorch = ErrorsOfLibTorch(GetParam(), spec, inputs, reference);
    for (const int workers : {1, 2, 3, 4}) {
      v1::AttentionOptions options;
      options.set_workers(workers);
      options.set_balancer(seed % 2 ? v1::BALANCER_HEAD_TAIL : v1::BALANCER_CONTIGUOUS);
      const absl::StatusOr<Plan> plan =
          MakePlan(spec, options, {.workers = workers}, DefaultMeasurements());
      ASSERT_TRUE(plan.ok()) << plan.status();
      const Outcome outcome = RunLocally(*plan, inputs);
      ASSERT_TRUE(outcome.ok()) << outcome.status();
      const Errors floor = Floor(spec, reference, workers);
      const Errors ours = ErrorsOf(spec, reference, outcome.out, outcome.lse);
      const std::string of =
          " of seed " + std::to_string(seed) + ", workers " + std::to_string(workers);
      EXPECT_LE(ours.out, std::max(2 * libtorch.out, floor.out)) << of;
      EXPECT_LE(ours.lse, std::max(2 * libtorch.lse, floor.lse)) << of;
    }
  }
}

std::vector<Setting> Settings() {
  const std::pair<v1::DType, at::ScalarType> types[] = {{v1::DTYPE_F32, at::kFloat},
                                                        {v1::DTYPE_F64, at::kDouble},
                                                        {v1::DTYPE_BF16, at::kBFloat16},
                                                        {v1::DTYPE_F16, at::kHalf}};
  std::vector<Setting> settings;
  for (const auto& [dtype, type] : types) {
    for (const bool causal : {true, false}) {
      for (const Kind& kind : kKinds) settings.push_back({dtype, type, causal, kind});
    }
  }
  return settings;
}

INSTANTIATE_TEST_SUITE_P(Of, Accuracy, ::testing::ValuesIn(Settings()));

}  // namespace
}  // namespace ringserve::test
