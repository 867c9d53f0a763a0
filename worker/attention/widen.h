// For sources whose loops are compiled for several processors: 16-bit numbers to fp32, in integer
// steps that compilers turn into vector code.
#pragma once

#include <bit>
#include <cstdint>

#include "worker/attention/row_blend.h"

// One body, several machine codes. Clang, which only checks these sources, knows no such targets.
#ifdef __clang__
#define RINGSERVE_CLONES
#else
#define RINGSERVE_CLONES \
  __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#endif
// Part of whichever of them calls it.
#define RINGSERVE_INLINE inline __attribute__((always_inline))

namespace ringserve {

RINGSERVE_INLINE double Widen(double value) { return value; }
RINGSERVE_INLINE float Widen(float value) { return value; }

RINGSERVE_INLINE float Widen(BFloat16Bits value) {
  return std::bit_cast<float>(static_cast<uint32_t>(value) << 16);
}

// The product, which is exact, moves the exponent's bias and makes subnormals normal; infinities
// and NaN get the largest exponent. No conditions, which compilers would turn into branches.
RINGSERVE_INLINE float Widen(HalfBits value) {
  const uint32_t bits = static_cast<uint32_t>(value);
  const uint32_t magnitude = (bits & 0x7fff) << 13;
  const uint32_t finite = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) * 0x1p112f);
  const uint32_t not_finite = -static_cast<uint32_t>((bits & 0x7c00) == 0x7c00);
  return std::bit_cast<float>(finite | (not_finite & 0x7f800000) | (bits & 0x8000) << 16);
}

}  // namespace ringserve
