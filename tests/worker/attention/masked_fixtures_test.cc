// PyTorch's masked fixtures over planner, assignments and ring: every mask family, every balancer,
// every rotate method, 1 to 4 ranks.
#include <cmath>
#include <numeric>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "proto/tensor_shape.h"
#include "proto/validate.h"
#include "tests/support/elements.h"
#include "tests/support/golden_request.h"
#include "tests/support/safetensors.h"
#include "tests/worker/attention/every_block.h"
#include "tests/worker/attention/local_ring.h"

namespace ringserve::test {
namespace {

using ::testing::HasSubstr;

constexpr int kMostRanks = 4;
constexpr v1::Balancer kBalancers[] = {v1::BALANCER_CONTIGUOUS, v1::BALANCER_HEAD_TAIL,
                                       v1::BALANCER_PER_DOCUMENT, v1::BALANCER_PTRR,
                                       v1::BALANCER_AUTO};
constexpr v1::RotateMethod kRotates[] = {v1::ROTATE_METHOD_ALL_TO_ALL, v1::ROTATE_METHOD_ALL_GATHER,
                                         v1::ROTATE_METHOD_PASS_Q};

std::vector<std::byte> BytesOf(const GoldenTensor& tensor) {
  const auto bytes = std::as_bytes(tensor.bytes);
  return {bytes.begin(), bytes.end()};
}

// The largest |score| of any query and key, hidden ones included.
double LargestScore(const v1::AttentionSpec& spec, const Inputs& inputs) {
  const std::vector<double> q = ToDoubles(inputs.q, spec.dtype());
  const std::vector<double> k = ToDoubles(inputs.k, spec.dtype());
  const int64_t dim = spec.head_dim(), group = spec.q_heads() / spec.kv_heads();
  double largest = 0;
  for (int64_t head = 0; head < spec.batch() * spec.q_heads(); ++head) {
    const double* queries = &q[head * spec.q_len() * dim];
    const double* keys = &k[head / group * spec.kv_len() * dim];
    for (int64_t i = 0; i < spec.q_len(); ++i) {
      for (int64_t j = 0; j < spec.kv_len(); ++j) {
        largest = std::max(largest,
                           std::abs(std::inner_product(queries + i * dim, queries + (i + 1) * dim,
                                                       keys + j * dim, 0.0)));
      }
    }
  }
  return std::abs(Scale(spec)) * largest;
}

// A case with its tensors, and what an answer is held against.
class MaskedCase {
 public:
  MaskedCase(const nlohmann::json& c, const SafetensorsFile& file)
      : spec_(GoldenSpec(c)), visible_pairs_(c.at("visible_pairs").get<std::vector<uint64_t>>()) {
    const std::string name = c.at("name");
    inputs_ = {BytesOf(file.at(name + "/q")), BytesOf(file.at(name + "/k")),
               BytesOf(file.at(name + "/v"))};
    if (spec_.alibi_slopes()) {
      inputs_.alibi_slopes =
          FromDoubles(c.at("alibi_slopes").get<std::vector<double>>(), v1::DTYPE_F32);
    }
    out_ = file.at(name + "/out").As<float>();
    lse_ = file.at(name + "/lse").As<double>();
    growth_ = std::max(1.0, LargestScore(spec_, inputs_) / 16);
  }

  const v1::AttentionSpec& spec() const { return spec_; }

  // Over `workers` ranks, or the failure of the present test.
  void Run(int workers, v1::Balancer balancer, v1::RotateMethod rotate) const {
    SCOPED_TRACE(v1::Balancer_Name(balancer) + " " + v1::RotateMethod_Name(rotate) + " over " +
                 std::to_string(workers));
    v1::AttentionOptions options;
    options.set_workers(workers);
    options.set_balancer(balancer);
    options.set_rotate(rotate);
    options.set_return_lse(true);
    options.set_ptrr_block(4);
    const absl::StatusOr<Plan> plan =
        MakePlan(spec_, options, {.workers = workers}, DefaultMeasurements());
    ASSERT_TRUE(plan.ok()) << plan.status();
    EXPECT_EQ(std::accumulate(plan->work.begin(), plan->work.end(), uint64_t{0}),
              std::accumulate(visible_pairs_.begin(), visible_pairs_.end(), uint64_t{0}));
    const Outcome outcome = RunLocally(*plan, inputs_, {.block = &FirstBlock()});
    ASSERT_TRUE(outcome.ok()) << outcome.status();
    Judge(outcome);
  }

 private:
  // Tolerances: of out a share of the largest |reference| (at least 1) and, in fp32, of the element
  // itself; of lse an absolute one. Both grow with the largest score where that is above 16.
  void Judge(const Outcome& outcome) const {
    double largest = 1;
    for (const float value : out_) largest = std::max<double>(largest, std::abs(value));
    const std::vector<double> out = ToDoubles(outcome.out, spec_.dtype());
    ASSERT_EQ(out.size(), out_.size());
    for (size_t i = 0; i < out.size(); ++i) {
      const double tolerance = spec_.dtype() == v1::DTYPE_F32
                                   ? 2e-6 * largest + 1e-5 * std::abs(out_[i])
                               : spec_.dtype() == v1::DTYPE_BF16 ? 1.6e-2 * largest
                                                                 : 2e-3 * largest;
      ASSERT_NEAR(out[i], out_[i], tolerance * growth_) << "out[" << i << "]";
    }
    const std::vector<double> lse = ToDoubles(outcome.lse, v1::DTYPE_F32);
    ASSERT_EQ(lse.size(), lse_.size());
    for (size_t i = 0; i < lse.size(); ++i) {
      if (lse[i] == lse_[i]) continue;  // -inf
      ASSERT_NEAR(lse[i], lse_[i], 1e-4 * growth_) << "lse[" << i << "]";
    }
  }

  v1::AttentionSpec spec_;
  std::vector<uint64_t> visible_pairs_;  // by batch row
  Inputs inputs_;
  std::vector<float> out_;
  std::vector<double> lse_;
  double growth_ = 1;  // of the tolerances, by the largest score
};

// visit(name, case) for all of the fixtures' masked cases; returns how many there were.
template <typename Visit>
int ForEachCase(const Visit& visit) {
  const SafetensorsFile file(GoldenPath("golden/masked.safetensors"));
  const nlohmann::json golden = ReadGoldenJson("golden/masked.json");
  int cases = 0;
  for (const nlohmann::json& c : golden.at("cases")) {
    SCOPED_TRACE(c.at("name").get<std::string>());
    visit(MaskedCase(c, file));
    ++cases;
  }
  return cases;
}

class MaskedFixtures : public ::testing::TestWithParam<int> {};

TEST_P(MaskedFixtures, AreMetByEveryBalancerAndRotateMethod) {
  const int cases = ForEachCase([&](const MaskedCase& c) {
    if (c.spec().has_softcap()) return;
    ASSERT_TRUE(ValidateSpec(c.spec()).ok()) << ValidateSpec(c.spec());
    for (const v1::Balancer balancer : kBalancers) {
      for (const v1::RotateMethod rotate : kRotates) c.Run(GetParam(), balancer, rotate);
    }
  });
  EXPECT_EQ(cases, 73);
}

INSTANTIATE_TEST_SUITE_P(Over, MaskedFixtures, ::testing::Range(1, kMostRanks + 1));

TEST(SoftCappedFixtures, AreRefusedByName) {
  int soft_capped = 0;
  ForEachCase([&](const MaskedCase& c) {
    if (!c.spec().has_softcap()) return;
    ++soft_capped;
    const absl::Status status = ValidateSpec(c.spec());
    EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("spec.softcap"));
  });
  EXPECT_EQ(soft_capped, 3);
}

}  // namespace
}  // namespace ringserve::test
