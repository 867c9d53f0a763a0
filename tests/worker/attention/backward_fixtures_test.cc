// PyTorch's gradients: those of its ring, and of every mask family over every balancer, both rotate
// methods of keys, 1 to 4 ranks.
#include <algorithm>
#include <cmath>
#include <span>

#include <gtest/gtest.h>

#include "tests/support/backward_oracle.h"
#include "tests/support/elements.h"
#include "tests/support/golden_request.h"
#include "tests/support/safetensors.h"
#include "tests/worker/attention/every_block.h"
#include "tests/worker/attention/local_backward.h"

namespace ringserve::test {
namespace {

constexpr int kMostRanks = 4;
constexpr v1::Balancer kBalancers[] = {v1::BALANCER_CONTIGUOUS, v1::BALANCER_HEAD_TAIL,
                                       v1::BALANCER_PER_DOCUMENT, v1::BALANCER_PTRR};
constexpr v1::RotateMethod kRotates[] = {v1::ROTATE_METHOD_ALL_TO_ALL,
                                         v1::ROTATE_METHOD_ALL_GATHER};

std::vector<std::byte> BytesOf(const GoldenTensor& tensor) {
  const auto bytes = std::as_bytes(tensor.bytes);
  return {bytes.begin(), bytes.end()};
}

Plan PlanOf(const v1::AttentionSpec& spec, int workers, v1::Balancer balancer,
            v1::RotateMethod rotate) {
  v1::AttentionOptions options;
  options.set_workers(workers);
  options.set_balancer(balancer);
  options.set_rotate(rotate);
  options.set_return_lse(true);
  options.set_ptrr_block(4);
  absl::StatusOr<Plan> plan = MakePlan(spec, options, {.workers = workers}, DefaultMeasurements());
  if (!plan.ok()) throw std::runtime_error(plan.status().ToString());
  return *std::move(plan);
}

// The answer that gradients are of is our own.
BackwardOutcome RunBackward(const Plan& plan, const Inputs& inputs,
                            const std::vector<std::byte>& d_out) {
  const LocalRingOptions options = {.block = &FirstBlock()};
  const Outcome forward = RunLocally(plan, inputs, options);
  if (!forward.ok()) throw std::runtime_error(forward.status().ToString());
  return RunLocallyBackward(plan, inputs, {forward.out, forward.lse, d_out, {}}, options);
}

double Largest(const std::vector<float>& numbers) {
  double largest = 0;
  for (const float number : numbers) largest = std::max<double>(largest, std::abs(number));
  return largest;
}

double LargestError(const std::vector<std::byte>& actual, const std::vector<float>& expected,
                    v1::DType dtype) {
  const std::vector<double> numbers = ToDoubles(actual, dtype);
  if (numbers.size() != expected.size()) return std::numeric_limits<double>::infinity();
  double largest = 0;
  for (size_t i = 0; i < numbers.size(); ++i) {
    const double error = std::abs(numbers[i] - expected[i]);
    if (!(error <= largest)) largest = error;
  }
  return largest;
}

// As of the forward pass: no more than twice PyTorch's own error, or a few roundings.
TEST(BackwardFixtures, OfPyTorchsRingAreMet) {
  const SafetensorsFile file(GoldenPath("golden/ring.safetensors"));
  const nlohmann::json golden = ReadGoldenJson("golden/ring.json");
  int cases = 0;
  for (const nlohmann::json& c : golden.at("cases")) {
    if (!c.at("backward")) continue;
    const std::string name = c.at("name");
    v1::AttentionSpec spec;
    spec.set_batch(c.at("B"));
    spec.set_q_heads(c.at("Hq"));
    spec.set_kv_heads(c.at("Hk"));
    spec.set_q_len(c.at("Sq"));
    spec.set_kv_len(c.at("Sk"));
    spec.set_head_dim(c.at("D"));
    spec.set_dtype(GoldenType(c.at("dtype")));
    if (!c.at("scale").is_null()) spec.set_scale(c.at("scale"));
    if (c.at("is_causal")) spec.add_masks()->set_causal(true);
    const Inputs inputs = {BytesOf(file.at(name + "/q")), BytesOf(file.at(name + "/k")),
                           BytesOf(file.at(name + "/v"))};
    const v1::Balancer balancer =
        c.at("load_balance") ? v1::BALANCER_HEAD_TAIL : v1::BALANCER_CONTIGUOUS;
    for (const v1::RotateMethod rotate : kRotates) {
      SCOPED_TRACE(name + " " + v1::RotateMethod_Name(rotate));
      const BackwardOutcome ours = RunBackward(PlanOf(spec, c.at("world_size"), balancer, rotate),
                                               inputs, BytesOf(file.at(name + "/dout")));
      ASSERT_TRUE(ours.status().ok()) << ours.status();
      const std::pair<const char*, const std::vector<std::byte>*> gradients[] = {
          {"dq", &ours.d_q}, {"dk", &ours.d_k}, {"dv", &ours.d_v}};
      for (const auto& [of, actual] : gradients) {
        const std::vector<float> expected = file.at(name + "/ref_" + of).As<float>();
        // Ours has an exp that is good to 2^-22, in the weights and in the sum that they are of.
        const double floor =
            (2 * UnitRoundoff(spec.dtype()) + 0x1p-20) * std::max(1., Largest(expected));
        EXPECT_LE(LargestError(*actual, expected, spec.dtype()),
                  std::max(floor, 2 * c.at("max_abs_error").at(of).get<double>()))
            << of;
      }
    }
    ++cases;
  }
  EXPECT_EQ(cases, 28);
}

// Tolerance: a share of the largest |reference|, of at least 1. It grows with the largest score
// where that is above 16.
void ExpectNear(const char* of, const v1::AttentionSpec& spec, const std::vector<std::byte>& actual,
                const std::vector<float>& expected, double growth) {
  const double share = spec.dtype() == v1::DTYPE_F32 ? 4e-6 : 1.6e-2;
  EXPECT_LE(LargestError(actual, expected, spec.dtype()),
            share * growth * std::max(1., Largest(expected)))
      << of;
}

class MaskedBackwardFixtures : public ::testing::TestWithParam<int> {};

TEST_P(MaskedBackwardFixtures, AreMetByEveryBalancerAndRotateMethod) {
  const SafetensorsFile file(GoldenPath("golden/masked.safetensors"));
  const nlohmann::json golden = ReadGoldenJson("golden/masked.json");
  int cases = 0;
  for (const nlohmann::json& c : golden.at("cases")) {
    if (!c.at("grad") || !c.at("softcap").is_null()) continue;
    const std::string name = c.at("name");
    const v1::AttentionSpec spec = GoldenSpec(c);
    Inputs inputs = {BytesOf(file.at(name + "/q")), BytesOf(file.at(name + "/k")),
                     BytesOf(file.at(name + "/v"))};
    if (spec.alibi_slopes()) {
      inputs.alibi_slopes =
          FromDoubles(c.at("alibi_slopes").get<std::vector<double>>(), v1::DTYPE_F32);
    }
    const std::vector<std::byte> d_out = BytesOf(file.at(name + "/dout"));
    const double growth = std::max(1., Attend(spec, inputs).largest_score / 16);
    for (const v1::Balancer balancer : kBalancers) {
      for (const v1::RotateMethod rotate : kRotates) {
        SCOPED_TRACE(name + " " + v1::Balancer_Name(balancer) + " " +
                     v1::RotateMethod_Name(rotate));
        const BackwardOutcome ours =
            RunBackward(PlanOf(spec, GetParam(), balancer, rotate), inputs, d_out);
        ASSERT_TRUE(ours.status().ok()) << ours.status();
        ExpectNear("dq", spec, ours.d_q, file.at(name + "/dq").As<float>(), growth);
        ExpectNear("dk", spec, ours.d_k, file.at(name + "/dk").As<float>(), growth);
        ExpectNear("dv", spec, ours.d_v, file.at(name + "/dv").As<float>(), growth);
      }
    }
    ++cases;
  }
  EXPECT_EQ(cases, 32);
}

INSTANTIATE_TEST_SUITE_P(Over, MaskedBackwardFixtures, ::testing::Range(1, kMostRanks + 1));

}  // namespace
}  // namespace ringserve::test
