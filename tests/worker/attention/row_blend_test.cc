#include "worker/attention/row_blend.h"

#include <bit>
#include <cmath>
#include <cstring>
#include <type_traits>
#include <vector>

#include <gtest/gtest.h>

#include "tests/support/elements.h"
#include "tests/support/random.h"

namespace ringserve::test {
namespace {

// Longer than the widest vector, shorter than one, and odd in every way.
constexpr int64_t kLongest = 70;

template <typename Value>
std::vector<Value> Elements(const std::vector<double>& numbers, v1::DType dtype) {
  const std::vector<std::byte> bytes = FromDoubles(numbers, dtype);
  std::vector<Value> values(numbers.size());
  if (!values.empty()) std::memcpy(values.data(), bytes.data(), bytes.size());
  return values;
}

template <typename Accumulated, typename Value>
void CheckType(v1::DType dtype) {
  Random random(1);
  const Accumulated keep = Accumulated(0.3), take = Accumulated(0.7);
  constexpr bool kBlends = std::is_same_v<Accumulated, Value>;
  for (int64_t n = 0; n <= kLongest; ++n) {
    std::vector<double> numbers(n);
    for (double& number : numbers) number = random.Normal();
    const std::vector<Value> values = Elements<Value>(numbers, dtype);
    const std::vector<double> exact = ToDoubles(FromDoubles(numbers, dtype), dtype);
    // One more element on either side, which must stay as it is.
    std::vector<Accumulated> before(n + 2), blended, copied;
    for (Accumulated& value : before) value = static_cast<Accumulated>(random.Normal());
    blended = copied = before;
    if constexpr (kBlends) BlendRow(blended.data() + 1, values.data(), n, keep, take);
    CopyRow(copied.data() + 1, values.data(), n);
    for (int64_t i = 0; i < n; ++i) {
      const double expected = double{keep} * before[i + 1] + double{take} * exact[i];
      if (kBlends) {
        ASSERT_NEAR(blended[i + 1], expected, sizeof(Accumulated) == 8 ? 1e-15 : 5e-7)
            << n << " " << i;
      }
      ASSERT_EQ(copied[i + 1], static_cast<Accumulated>(exact[i])) << n << " " << i;
    }
    for (const int64_t edge : {int64_t{0}, n + 1}) {
      ASSERT_EQ(blended[edge], before[edge]);
      ASSERT_EQ(copied[edge], before[edge]);
    }
  }
}

TEST(RowBlend, IsRightForEveryTypeAndLength) {
  CheckType<double, double>(v1::DTYPE_F64);
  CheckType<float, float>(v1::DTYPE_F32);
  CheckType<float, BFloat16Bits>(v1::DTYPE_BF16);
  CheckType<float, HalfBits>(v1::DTYPE_F16);
}

template <typename Value>
void CheckEveryBitPattern(v1::DType dtype) {
  std::vector<Value> values;
  std::vector<std::byte> bytes;
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    values.push_back(static_cast<Value>(bits));
    bytes.push_back(static_cast<std::byte>(bits));
    bytes.push_back(static_cast<std::byte>(bits >> 8));
  }
  const std::vector<double> exact = ToDoubles(bytes, dtype);
  std::vector<float> copied(values.size(), -1);
  CopyRow(copied.data(), values.data(), static_cast<int64_t>(values.size()));
  for (size_t i = 0; i < values.size(); ++i) {
    ASSERT_EQ(std::isnan(copied[i]), std::isnan(exact[i])) << i;
    if (std::isnan(exact[i])) continue;
    ASSERT_EQ(copied[i], exact[i]) << i;
    ASSERT_EQ(std::signbit(copied[i]), std::signbit(exact[i])) << i;
  }
}

TEST(RowBlend, WidensEveryNarrowNumberExactly) {
  CheckEveryBitPattern<BFloat16Bits>(v1::DTYPE_BF16);
  CheckEveryBitPattern<HalfBits>(v1::DTYPE_F16);
}

TEST(RowBlend, DoesNotReadWhatItCopiesOver) {
  std::vector<float> row(9, std::nanf(""));
  const std::vector<float> values(9, 2);
  CopyRow(row.data(), values.data(), 9);
  EXPECT_EQ(row, values);
}

}  // namespace
}  // namespace ringserve::test
