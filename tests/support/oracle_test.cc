#include "tests/support/oracle.h"

#include <cmath>
#include <limits>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/elements.h"
#include "tests/support/golden_request.h"
#include "tests/support/safetensors.h"

namespace ringserve::test {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

std::vector<uint16_t> Bits(double value, v1::DType dtype) {
  const std::vector<std::byte> bytes = FromDoubles(std::vector<double>{value}, dtype);
  return {
      static_cast<uint16_t>(std::to_integer<int>(bytes[0]) | std::to_integer<int>(bytes[1]) << 8)};
}

TEST(Elements, OfNarrowTypesAreTheNearestOnesTiesToEven) {
  EXPECT_THAT(Bits(1, v1::DTYPE_BF16), ElementsAre(0x3f80));
  EXPECT_THAT(Bits(1 + 0x1p-8, v1::DTYPE_BF16), ElementsAre(0x3f80));
  EXPECT_THAT(Bits(1 + 3 * 0x1p-8, v1::DTYPE_BF16), ElementsAre(0x3f82));
  EXPECT_THAT(Bits(-2 + 0x1p-9, v1::DTYPE_BF16), ElementsAre(0xc000));  // the carry
  EXPECT_THAT(Bits(1e39, v1::DTYPE_BF16), ElementsAre(0x7f80));
  EXPECT_THAT(Bits(1, v1::DTYPE_F16), ElementsAre(0x3c00));
  EXPECT_THAT(Bits(65504, v1::DTYPE_F16), ElementsAre(0x7bff));
  EXPECT_THAT(Bits(65519, v1::DTYPE_F16), ElementsAre(0x7bff));
  EXPECT_THAT(Bits(65520, v1::DTYPE_F16), ElementsAre(0x7c00));
  EXPECT_THAT(Bits(0x1p-24, v1::DTYPE_F16), ElementsAre(1));
  EXPECT_THAT(Bits(0x1p-25, v1::DTYPE_F16), ElementsAre(0));
  EXPECT_THAT(Bits(-0x1.8p-25, v1::DTYPE_F16), ElementsAre(0x8001));
}

TEST(Elements, ComeBackAsTheyWere) {
  for (const v1::DType dtype : {v1::DTYPE_BF16, v1::DTYPE_F16}) {
    std::vector<std::byte> every;
    for (int bits = 0; bits < 0x10000; ++bits) {
      every.push_back(static_cast<std::byte>(bits));
      every.push_back(static_cast<std::byte>(bits >> 8));
    }
    const std::vector<double> values = ToDoubles(every, dtype);
    const std::vector<std::byte> again = FromDoubles(values, dtype);
    for (size_t i = 0; i < values.size(); ++i) {
      if (std::isnan(values[i])) continue;
      ASSERT_EQ(again[2 * i], every[2 * i]) << values[i];
      ASSERT_EQ(again[2 * i + 1], every[2 * i + 1]) << values[i];
    }
  }
}

v1::AttentionSpec Spec(const nlohmann::json& c) {
  v1::AttentionSpec spec;
  spec.set_batch(c.at("B"));
  spec.set_q_heads(c.at("Hq"));
  spec.set_kv_heads(c.at("Hk"));
  spec.set_q_len(c.at("Sq"));
  spec.set_kv_len(c.at("Sk"));
  spec.set_head_dim(c.at("D"));
  spec.set_dtype(c.at("dtype") == "f32"    ? v1::DTYPE_F32
                 : c.at("dtype") == "bf16" ? v1::DTYPE_BF16
                                           : v1::DTYPE_F16);
  if (!c.at("scale").is_null()) spec.set_scale(c.at("scale"));
  if (c.at("is_causal")) spec.add_masks()->set_causal(true);
  return spec;
}

std::vector<std::byte> Bytes(const GoldenTensor& tensor) {
  const auto bytes = std::as_bytes(tensor.bytes);
  return {bytes.begin(), bytes.end()};
}

// Somebody else's fp64 reference: PyTorch's, in the fixtures.
TEST(Oracle, AgreesWithTheFixturesReference) {
  const SafetensorsFile file(GoldenPath("golden/ring.safetensors"));
  const nlohmann::json golden = ReadGoldenJson("golden/ring.json");
  for (const nlohmann::json& c : golden.at("cases")) {
    const std::string name = c.at("name");
    const v1::AttentionSpec spec = Spec(c);
    const Inputs inputs = {Bytes(file.at(name + "/q")), Bytes(file.at(name + "/k")),
                           Bytes(file.at(name + "/v"))};
    const Reference reference = Attend(spec, inputs);
    const std::vector<float> out = file.at(name + "/ref_out").As<float>();
    ASSERT_EQ(out.size(), reference.out.size()) << name;
    for (size_t i = 0; i < out.size(); ++i) ASSERT_NEAR(out[i], reference.out[i], 1e-6) << name;
    const std::vector<double> lse = file.at(name + "/ref_lse").As<double>();
    ASSERT_EQ(lse.size(), reference.lse.size()) << name;
    for (size_t i = 0; i < lse.size(); ++i) ASSERT_NEAR(lse[i], reference.lse[i], 1e-12) << name;
  }
}

v1::AttentionSpec SmallSpec() {
  v1::AttentionSpec spec;
  spec.set_batch(2);
  spec.set_q_heads(4);
  spec.set_kv_heads(2);
  spec.set_q_len(5);
  spec.set_kv_len(7);
  spec.set_head_dim(3);
  spec.set_value_dim(2);
  spec.set_dtype(v1::DTYPE_F64);
  return spec;
}

TEST(Oracle, GivesTheSameForBothLayouts) {
  v1::AttentionSpec spec = SmallSpec();
  spec.add_masks()->set_causal(true);
  spec.mutable_masks(0)->set_bottom_right(true);
  const Inputs inputs = RandomInputs(spec, 1);
  v1::AttentionSpec swapped = spec;
  swapped.set_tensor_layout(v1::TENSOR_LAYOUT_BSHD);
  const auto transposed = [&](const std::vector<double>& from, int64_t heads, int64_t rows,
                              int64_t dim) {
    std::vector<double> to(from.size());
    for (int64_t b = 0; b < 2; ++b)
      for (int64_t h = 0; h < heads; ++h)
        for (int64_t s = 0; s < rows; ++s)
          for (int64_t d = 0; d < dim; ++d)
            to[((b * rows + s) * heads + h) * dim + d] =
                from[((b * heads + h) * rows + s) * dim + d];
    return to;
  };
  const auto bytes = [&](const std::vector<std::byte>& from, int64_t heads, int64_t rows,
                         int64_t dim) {
    return FromDoubles(transposed(ToDoubles(from, v1::DTYPE_F64), heads, rows, dim), v1::DTYPE_F64);
  };
  const Reference head_major = Attend(spec, inputs);
  const Reference token_major = Attend(
      swapped, {bytes(inputs.q, 4, 5, 3), bytes(inputs.k, 2, 7, 3), bytes(inputs.v, 2, 7, 2)});
  EXPECT_EQ(token_major.lse, head_major.lse);
  EXPECT_EQ(token_major.out, transposed(head_major.out, 4, 5, 2));
}

TEST(Oracle, ShowsNothingToARowWithoutKeys) {
  v1::AttentionSpec spec = SmallSpec();
  v1::Mask* mask = spec.add_masks();
  mask->set_causal(true);
  mask->set_q_offset(-2);
  const Reference reference = Attend(spec, RandomInputs(spec, 1));
  for (int row = 0; row < 2 * 4 * 5; ++row) {
    EXPECT_EQ(std::isinf(reference.lse[row]), row % 5 < 2) << row;
    EXPECT_EQ(reference.out[2 * row] == 0, row % 5 < 2) << row;
  }
}

// ALiBi, the fixtures' own: slopes times |q + Sk - Sq - k|, whatever the mask.
TEST(Oracle, AgreesWithTheFixturesOfAlibi) {
  const SafetensorsFile file(GoldenPath("golden/masked.safetensors"));
  const nlohmann::json golden = ReadGoldenJson("golden/masked.json");
  int cases = 0;
  for (const nlohmann::json& c : golden.at("cases")) {
    if (c.at("alibi_slopes").is_null() || !c.at("softcap").is_null()) continue;
    const std::string name = c.at("name");
    const Inputs inputs = {.q = Bytes(file.at(name + "/q")),
                           .k = Bytes(file.at(name + "/k")),
                           .v = Bytes(file.at(name + "/v")),
                           .alibi_slopes = FromDoubles(
                               c.at("alibi_slopes").get<std::vector<double>>(), v1::DTYPE_F32)};
    const Reference reference = Attend(GoldenSpec(c), inputs);
    const std::vector<double> lse = file.at(name + "/lse").As<double>();
    ASSERT_EQ(lse.size(), reference.lse.size()) << name;
    for (size_t i = 0; i < lse.size(); ++i) ASSERT_NEAR(lse[i], reference.lse[i], 1e-12) << name;
    const std::vector<float> out = file.at(name + "/out").As<float>();
    for (size_t i = 0; i < out.size(); ++i) ASSERT_NEAR(out[i], reference.out[i], 1e-6) << name;
    ++cases;
  }
  EXPECT_EQ(cases, 3);
}

// One query, two keys of score 0 and values 1 and 3.
TEST(Oracle, AddsBiasAndSinkAsTheyAreDefined) {
  v1::AttentionSpec spec;
  spec.set_batch(1);
  spec.set_q_heads(1);
  spec.set_kv_heads(1);
  spec.set_q_len(1);
  spec.set_kv_len(2);
  spec.set_head_dim(1);
  spec.set_dtype(v1::DTYPE_F64);
  const auto bytes = [](std::vector<double> values, v1::DType dtype = v1::DTYPE_F64) {
    return FromDoubles(values, dtype);
  };
  Inputs inputs = {.q = bytes({0}), .k = bytes({5, 6}), .v = bytes({1, 3})};
  spec.mutable_bias();
  inputs.bias = bytes({0, std::log(3)});
  const Reference biased = Attend(spec, inputs);
  EXPECT_DOUBLE_EQ(biased.out[0], 2.5);
  EXPECT_DOUBLE_EQ(biased.lse[0], std::log(4));
  spec.set_sink_logits(true);
  inputs.sink_logits = bytes({std::log(4)}, v1::DTYPE_F32);
  const Reference sunk = Attend(spec, inputs);
  EXPECT_NEAR(sunk.out[0], 1.25, 1e-7);
  EXPECT_NEAR(sunk.lse[0], std::log(8), 1e-7);
  EXPECT_DOUBLE_EQ(sunk.lse_without_sinks[0], std::log(4));
  spec.mutable_bias()->set_boolean(true);
  inputs.bias = {std::byte{1}, std::byte{0}};
  spec.set_sink_logits(false);
  EXPECT_EQ(Attend(spec, inputs).out[0], 1);
  EXPECT_EQ(Attend(spec, inputs).lse[0], 0);
  inputs.bias = {std::byte{0}, std::byte{0}};
  EXPECT_EQ(Attend(spec, inputs).out[0], 0);
  EXPECT_EQ(Attend(spec, inputs).lse[0], -std::numeric_limits<double>::infinity());
}

TEST(Oracle, TellsWhatIsWrong) {
  const v1::AttentionSpec spec = SmallSpec();
  const Reference reference = Attend(spec, RandomInputs(spec, 1));
  const std::vector<std::byte> lse = FromDoubles(reference.lse, v1::DTYPE_F64);
  EXPECT_THAT(Compare(spec, reference, FromDoubles(reference.out, v1::DTYPE_F64), lse), IsEmpty());
  for (const double fault :
       {reference.out[7] + 1e-12, std::nan(""), std::numeric_limits<double>::infinity()}) {
    std::vector<double> wrong = reference.out;
    wrong[7] = fault;
    EXPECT_THAT(Compare(spec, reference, FromDoubles(wrong, v1::DTYPE_F64), lse),
                HasSubstr("out[7]"));
  }
  EXPECT_THAT(Compare(spec, reference, {}, lse), HasSubstr("0 elements"));
}

}  // namespace
}  // namespace ringserve::test
