#include "client/ringctl/elements.h"

#include <bit>
#include <cassert>
#include <cmath>
#include <cstring>
#include <limits>

namespace ringserve {
namespace {

double FromBf16(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

double FromF16(uint16_t bits) {
  const int exponent = bits >> 10 & 0x1F;
  const double fraction = bits & 0x3FF;
  double magnitude = 0;
  if (exponent == 0x1F) {
    magnitude = fraction == 0 ? std::numeric_limits<double>::infinity()
                              : std::numeric_limits<double>::quiet_NaN();
  } else if (exponent == 0) {
    magnitude = std::ldexp(fraction, -24);
  } else {
    magnitude = std::ldexp(fraction + 1024, exponent - 25);
  }
  return (bits & 0x8000) != 0 ? -magnitude : magnitude;
}

template <typename Stored, typename Convert>
void Read(const std::byte* from, std::span<double> values, Convert convert) {
  for (size_t i = 0; i < values.size(); ++i) {
    Stored stored;
    std::memcpy(&stored, from + i * sizeof(Stored), sizeof(Stored));
    values[i] = convert(stored);
  }
}

}  // namespace

void ReadElements(std::span<const std::byte> tensor, v1::DType dtype, int64_t first,
                  std::span<double> values) {
  const std::byte* data = tensor.data();
  switch (dtype) {
    case v1::DTYPE_F32:
      return Read<float>(data + first * 4, values, [](float x) { return double{x}; });
    case v1::DTYPE_F64:
      return Read<double>(data + first * 8, values, [](double x) { return x; });
    case v1::DTYPE_BF16:
      return Read<uint16_t>(data + first * 2, values, FromBf16);
    case v1::DTYPE_F16:
      return Read<uint16_t>(data + first * 2, values, FromF16);
    default:
      assert(false && "no dtype of a request");
  }
}

}  // namespace ringserve
