#include "worker/attention/score_rows.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "tests/support/elements.h"
#include "tests/support/random.h"

namespace ringserve::test {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

template <typename Number>
constexpr v1::DType kType = std::is_same_v<Number, float>      ? v1::DTYPE_F32
                            : std::is_same_v<Number, HalfBits> ? v1::DTYPE_F16
                                                               : v1::DTYPE_BF16;

// Rows of numbers, `stride` apart, and the same as fp32.
template <typename Number>
struct Matrix {
  int64_t stride;
  std::vector<Number> numbers;
  std::vector<double> exact;

  Matrix(Random& random, int64_t rows, int64_t stride) : stride(stride), numbers(rows * stride) {
    std::vector<double> normal(rows * stride);
    for (double& number : normal) number = random.Normal();
    const std::vector<std::byte> bytes = FromDoubles(normal, kType<Number>);
    std::ranges::copy(bytes, std::as_writable_bytes(std::span(numbers)).begin());
    exact = ToDoubles(bytes, kType<Number>);
  }
};

double Wide(BFloat16Bits bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

// Element [k][n] of a right operand of `columns` columns.
double At(const std::vector<float>& panel, int64_t columns, int64_t k, int64_t n) {
  return panel[k * columns + n];
}
double At(const std::vector<BFloat16Bits>& panel, int64_t columns, int64_t k, int64_t n) {
  return Wide(panel[(k / 2 * columns + n) * 2 + k % 2]);
}

template <typename Packed, typename Number>
void CheckKeys(int64_t rows, int64_t dim) {
  Random random(1);
  const Matrix<Number> keys(random, rows, dim + 3);
  const int64_t depth = std::is_same_v<Packed, float> ? dim : (dim + 1) / 2 * 2;
  std::vector<Packed> panel(depth * kPanelColumns + 1, Packed{7});
  LayOutKeys(panel.data(), keys.numbers.data(), keys.stride, rows, dim);
  for (int64_t d = 0; d < depth; ++d) {
    for (int64_t row = 0; row < kPanelColumns; ++row) {
      const double expected = row < rows && d < dim ? keys.exact[row * keys.stride + d] : 0;
      ASSERT_EQ(At(panel, kPanelColumns, d, row), expected) << rows << " " << dim << " " << d;
    }
  }
  ASSERT_EQ(panel.back(), Packed{7});
}

template <typename Packed, typename Number>
void CheckValues(int64_t rows, int64_t columns, int64_t width) {
  Random random(1);
  const Matrix<Number> values(random, rows, columns + 3);
  std::vector<Packed> panel(kPanelColumns * width + 1, Packed{7});
  LayOutValues(panel.data(), values.numbers.data(), values.stride, rows, columns, width);
  for (int64_t row = 0; row < kPanelColumns; ++row) {
    for (int64_t c = 0; c < width; ++c) {
      const double expected = row < rows && c < columns ? values.exact[row * values.stride + c] : 0;
      ASSERT_EQ(At(panel, width, row, c), expected) << rows << " " << columns << " " << row;
    }
  }
  ASSERT_EQ(panel.back(), Packed{7});
}

TEST(ScoreRows, LayOutKeysAsColumns) {
  for (const int64_t rows : {1, 2, 15, 16, 17, 63, 64}) {
    for (const int64_t dim : {1, 2, 3, 15, 16, 17, 31, 32, 33, 64, 80, 127}) {
      CheckKeys<BFloat16Bits, BFloat16Bits>(rows, dim);
      CheckKeys<float, BFloat16Bits>(rows, dim);
      CheckKeys<float, HalfBits>(rows, dim);
      CheckKeys<float, float>(rows, dim);
    }
  }
}

TEST(ScoreRows, LayOutValuesAsRows) {
  for (const int64_t rows : {1, 2, 3, 31, 63, 64}) {
    for (const auto& [columns, width] :
         {std::pair{1, 16}, {16, 16}, {17, 32}, {47, 48}, {64, 64}}) {
      CheckValues<BFloat16Bits, BFloat16Bits>(rows, columns, width);
      CheckValues<float, BFloat16Bits>(rows, columns, width);
      CheckValues<float, HalfBits>(rows, columns, width);
      CheckValues<float, float>(rows, columns, width);
    }
  }
}

template <typename Number>
void CheckProducts(int64_t rows, int64_t dim) {
  Random random(1);
  const Matrix<float> left(random, 2, std::max(rows, dim));
  const Matrix<Number> right(random, rows, dim + 3);
  const float* const row = left.numbers.data();
  const float* const weights = row + left.stride;
  std::vector<float> results(rows + 1, 7), sums(dim + 1, 7);
  MultiplyRows(results.data(), row, right.numbers.data(), right.stride, rows, dim);
  AddRows(sums.data(), weights, right.numbers.data(), right.stride, rows, dim);
  for (int64_t i = 0; i < rows; ++i) {
    double expected = 0;
    for (int64_t d = 0; d < dim; ++d) expected += row[d] * right.exact[i * right.stride + d];
    ASSERT_NEAR(results[i], expected, 1e-4) << rows << " " << dim << " " << i;
  }
  for (int64_t d = 0; d < dim; ++d) {
    double expected = 7;
    for (int64_t i = 0; i < rows; ++i) expected += weights[i] * right.exact[i * right.stride + d];
    ASSERT_NEAR(sums[d], expected, 1e-4) << rows << " " << dim << " " << d;
  }
  ASSERT_EQ(results[rows], 7);
  ASSERT_EQ(sums[dim], 7);
}

TEST(ScoreRows, AreMultipliedAsTheyLie) {
  for (const int64_t rows : {0, 1, 3, 4, 5, 64, 511}) {
    for (const int64_t dim : {1, 2, 15, 16, 17, 47, 128}) {
      CheckProducts<float>(rows, dim);
      CheckProducts<BFloat16Bits>(rows, dim);
      CheckProducts<HalfBits>(rows, dim);
    }
  }
}

TEST(ScoreRows, FindTheLargestNumber) {
  Random random(1);
  EXPECT_EQ(Largest(nullptr, 0), -kInfinity);
  for (int64_t n = 1; n <= 70; ++n) {
    for (const float most : {3.f, -3.f, -kInfinity, kInfinity}) {
      std::vector<float> scores(n + 1, -kInfinity);
      for (int64_t i = 0; i < n; ++i) scores[i] = most - std::abs(float(random.Normal()));
      scores[random.Between(0, n - 1)] = most;
      scores[n] = std::numeric_limits<float>::max();
      ASSERT_EQ(Largest(scores.data(), n), most) << n;
      scores[0] = std::nanf("");
      scores[n - 1] = most;
      ASSERT_EQ(Largest(scores.data(), n), most) << n << " and NaN";
    }
  }
}

template <typename Number>
void CheckBias(int64_t n) {
  Random random(1);
  const Matrix<Number> bias(random, 1, n + 1);
  std::vector<float> row(n + 1, 3);
  AddBias(row.data(), bias.numbers.data(), n, 0.5f);
  for (int64_t i = 0; i < n; ++i) ASSERT_NEAR(row[i], 1.5 + bias.exact[i], 1e-6) << n << " " << i;
  ASSERT_EQ(row[n], 3);
}

TEST(ScoreRows, TakeABias) {
  for (const int64_t n : {0, 1, 7, 16, 33, 512}) {
    CheckBias<float>(n);
    CheckBias<BFloat16Bits>(n);
    CheckBias<HalfBits>(n);
  }
}

TEST(ScoreRows, TakeDistancesToBothSides) {
  for (const int64_t n : {0, 1, 7, 16, 33, 512}) {
    for (const int64_t distance : {int64_t{-3}, int64_t{0}, int64_t{20}, int64_t{1} << 40}) {
      std::vector<float> row(n + 1, 3);
      AddDistances(row.data(), n, 0.5f, 0.25f, distance);
      for (int64_t i = 0; i < n; ++i) {
        const double expected = 1.5 - 0.25 * static_cast<double>(std::abs(distance - i));
        ASSERT_NEAR(row[i], expected, 1e-6 * std::abs(expected)) << n << " " << i;
      }
      ASSERT_EQ(row[n], 3);
    }
  }
}

// NaN is hidden, too.
TEST(ScoreRows, AreHidden) {
  for (const int64_t n : {0, 1, 7, 16, 33, 512}) {
    std::vector<float> row(n + 1, 3);
    std::vector<uint8_t> visible(n + 1);
    for (int64_t i = 0; i < n; ++i) visible[i] = i % 3 == 0 ? 0 : static_cast<uint8_t>(i);
    for (int64_t i = 0; i < n; i += 6) row[i] = std::nanf("");
    Hide(row.data(), visible.data(), n, 0.5f);
    for (int64_t i = 0; i < n; ++i) ASSERT_EQ(row[i], visible[i] ? 1.5f : -kInfinity) << n;
    ASSERT_EQ(row[n], 3);
  }
}

TEST(ScoreRows, WeighScoresOfEveryMagnitude) {
  Random random(1);
  for (int64_t n = 0; n <= 600; n = n < 70 ? n + 1 : n + 77) {
    const float scale = 0.3f;
    std::vector<float> row(n + 1);
    for (float& score : row) score = float(-random.Fraction() * (random.Chance(0.5) ? 20 : 400));
    const std::vector<float> scores = row;
    std::vector<BFloat16Bits> rounded(n + 1, BFloat16Bits{7});
    std::vector<float> again = scores;
    const float sum = Weigh(row.data(), n, scale, 0.5f);
    ASSERT_EQ(Weigh(rounded.data(), again.data(), n, scale, 0.5f), sum);
    double expected_sum = 0;
    for (int64_t i = 0; i < n; ++i) {
      const double exponent = double{scores[i]} * double{scale} - 0.5;
      const double expected = std::exp(exponent);
      expected_sum += expected;
      // A processor may or may not round before it subtracts.
      const double relative = 0x1p-22 + 0x1p-23 * std::abs(exponent);
      ASSERT_NEAR(row[i], expected, expected * relative + 2e-38) << scores[i];
      ASSERT_NEAR(Wide(rounded[i]), row[i], std::abs(row[i]) * 0x1p-8) << scores[i];
    }
    ASSERT_NEAR(sum, expected_sum, expected_sum * 1e-6);
    ASSERT_EQ(row[n], scores[n]);
    ASSERT_EQ(rounded[n], BFloat16Bits{7});
  }
}

// What rounding takes from a product of 10^12 is an exponent of thousands.
TEST(ScoreRows, WeighTheLargestOfHugeScoresAsOne) {
  Random random(2);
  for (const float magnitude : {1e3f, 1e4f, 1e5f, 1e6f, 1e10f, 1e20f, 1e37f}) {
    for (int round = 0; round < 50; ++round) {
      const float scale = 0.1f + float(random.Fraction());
      std::vector<float> row(100);
      for (float& score : row) score = float(random.Normal()) * magnitude;
      const int64_t at = std::max_element(row.begin(), row.end()) - row.begin();
      std::vector<float> again = row;
      std::vector<BFloat16Bits> weights(row.size());
      const float most = Largest(row.data(), 100) * scale;
      const float sum = Weigh(row.data(), 100, scale, most);
      ASSERT_EQ(Weigh(weights.data(), again.data(), 100, scale, most), sum);
      // Half a unit of what is below 2^16; past that products are rounded before.
      ASSERT_NEAR(row[at], 1, std::abs(most) > 0x1p16f ? 0 : 0x1p-8) << magnitude;
      ASSERT_NEAR(Wide(weights[at]), 1, 0x1p-7);
      ASSERT_TRUE(sum >= 0.99f && sum <= 100) << sum;
    }
  }
}

TEST(ScoreRows, RoundWeightsToTheNearest) {
  for (const float score : {0.f, -0.1f, -0.2f, -1.f, -5.5f, -30.f, -86.f}) {
    float row = score, again = score;
    BFloat16Bits weight;
    Weigh(&row, 1, 1, 0);
    Weigh(&weight, &again, 1, 1, 0);
    const std::vector<double> exact = {row};
    BFloat16Bits expected;
    std::memcpy(&expected, FromDoubles(exact, v1::DTYPE_BF16).data(), sizeof expected);
    EXPECT_EQ(weight, expected) << score;
  }
}

TEST(ScoreRows, WeighWhatIsNotFinite) {
  std::vector<float> row(40, 0);
  row[3] = -kInfinity;
  std::vector<float> hidden = row;
  EXPECT_EQ(Weigh(hidden.data(), 40, 1, 0), 39);
  EXPECT_EQ(hidden[3], 0);
  for (const float bad : {std::nanf(""), -std::nanf(""), kInfinity}) {
    for (const int64_t at : {0, 17, 39}) {
      std::vector<float> scores = row;
      std::vector<BFloat16Bits> weights(40);
      scores[at] = bad;
      const float most = bad == kInfinity ? kInfinity : 0;
      EXPECT_TRUE(std::isnan(Weigh(weights.data(), scores.data(), 40, 1, most)));
      EXPECT_TRUE(std::isnan(Weigh(scores.data(), 40, 1, most)));
      EXPECT_TRUE(std::isnan(scores[at]));
      EXPECT_TRUE(std::isnan(Wide(weights[at])));
    }
  }
}

TEST(ScoreRows, AreScaled) {
  for (int64_t n = 0; n <= 70; ++n) {
    std::vector<float> from(n), row(n + 1, 1);
    for (int64_t i = 0; i < n; ++i) from[i] = float(i);
    ScaleRow(row.data(), from.data(), n, 0.5f);
    for (int64_t i = 0; i < n; ++i) ASSERT_EQ(row[i], float(i) / 2);
    ASSERT_EQ(row[n], 1);
    ScaleRow(from.data(), from.data(), n, 0.5f);
    row.pop_back();
    ASSERT_EQ(from, row);
  }
}

}  // namespace
}  // namespace ringserve::test
