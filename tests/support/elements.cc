#include "tests/support/elements.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <stdexcept>

namespace ringserve::test {
namespace {

// A 16-bit format: sign, exponent, fraction.
struct Narrow {
  int exponent_bits, fraction_bits;

  int bias() const { return (1 << (exponent_bits - 1)) - 1; }
  int infinity() const { return ((1 << exponent_bits) - 1) << fraction_bits; }
};

constexpr Narrow kBFloat16{8, 7}, kHalf{5, 10};

uint16_t Encode(double value, Narrow format) {
  const int sign = std::signbit(value) ? 0x8000 : 0;
  if (std::isnan(value)) return sign | format.infinity() | 1 << (format.fraction_bits - 1);
  const double magnitude = std::abs(value);
  if (std::isinf(value)) return sign | format.infinity();
  const int exponent = std::max(magnitude == 0 ? -9999 : std::ilogb(magnitude), 1 - format.bias());
  // A normal number's leading one adds 1 to the exponent field, and so does a carry.
  const double fraction = std::nearbyint(std::ldexp(magnitude, format.fraction_bits - exponent));
  const int bits =
      ((exponent + format.bias() - 1) << format.fraction_bits) + static_cast<int>(fraction);
  return sign | std::min(bits, format.infinity());
}

double Decode(uint16_t bits, Narrow format) {
  const int magnitude = bits & 0x7fff;
  const int exponent = magnitude >> format.fraction_bits;
  const int fraction = magnitude & ((1 << format.fraction_bits) - 1);
  double value = std::numeric_limits<double>::infinity();
  if (magnitude > format.infinity()) {
    value = std::numeric_limits<double>::quiet_NaN();
  } else if (magnitude < format.infinity()) {
    const int significand = exponent == 0 ? fraction : fraction + (1 << format.fraction_bits);
    value = std::ldexp(significand, std::max(exponent, 1) - format.bias() - format.fraction_bits);
  }
  return bits & 0x8000 ? -value : value;
}

template <typename Element, typename Convert>
std::vector<double> Read(std::span<const std::byte> bytes, const Convert& convert) {
  if (bytes.size() % sizeof(Element) != 0) throw std::invalid_argument("bytes of half an element");
  std::vector<double> values(bytes.size() / sizeof(Element));
  for (size_t i = 0; i < values.size(); ++i) {
    Element element;
    std::memcpy(&element, &bytes[i * sizeof(Element)], sizeof(Element));
    values[i] = convert(element);
  }
  return values;
}

template <typename Element, typename Convert>
std::vector<std::byte> Write(std::span<const double> values, const Convert& convert) {
  std::vector<std::byte> bytes(values.size() * sizeof(Element));
  for (size_t i = 0; i < values.size(); ++i) {
    const Element element = convert(values[i]);
    std::memcpy(&bytes[i * sizeof(Element)], &element, sizeof(Element));
  }
  return bytes;
}

}  // namespace

std::vector<double> ToDoubles(std::span<const std::byte> bytes, v1::DType dtype) {
  switch (dtype) {
    case v1::DTYPE_F32:
      return Read<float>(bytes, [](float element) { return element; });
    case v1::DTYPE_F64:
      return Read<double>(bytes, [](double element) { return element; });
    case v1::DTYPE_BF16:
      return Read<uint16_t>(bytes, [](uint16_t bits) { return Decode(bits, kBFloat16); });
    case v1::DTYPE_F16:
      return Read<uint16_t>(bytes, [](uint16_t bits) { return Decode(bits, kHalf); });
    default:
      throw std::invalid_argument("no elements of this dtype");
  }
}

std::vector<std::byte> FromDoubles(std::span<const double> values, v1::DType dtype) {
  switch (dtype) {
    case v1::DTYPE_F32:
      return Write<float>(values, [](double value) { return static_cast<float>(value); });
    case v1::DTYPE_F64:
      return Write<double>(values, [](double value) { return value; });
    case v1::DTYPE_BF16:
      return Write<uint16_t>(values, [](double value) { return Encode(value, kBFloat16); });
    case v1::DTYPE_F16:
      return Write<uint16_t>(values, [](double value) { return Encode(value, kHalf); });
    default:
      throw std::invalid_argument("no elements of this dtype");
  }
}

double UnitRoundoff(v1::DType dtype) {
  switch (dtype) {
    case v1::DTYPE_F64:
      return 0x1p-53;
    case v1::DTYPE_BF16:
      return 0x1p-8;
    case v1::DTYPE_F16:
      return 0x1p-11;
    default:
      return 0x1p-24;
  }
}

}  // namespace ringserve::test
