#include "worker/attention/row_blend.h"

#include <bit>

// One body, several machine codes.
#define RINGSERVE_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))

namespace ringserve {
namespace {

#define RINGSERVE_INLINE inline __attribute__((always_inline))

RINGSERVE_INLINE double Widen(double value) { return value; }
RINGSERVE_INLINE float Widen(float value) { return value; }

RINGSERVE_INLINE float Widen(BFloat16Bits value) {
  return std::bit_cast<float>(static_cast<uint32_t>(value) << 16);
}

// Integer steps and one exact product, because compilers turn them into vector code where they do
// not for half's own type. The product moves the exponent's bias and makes subnormals normal;
// infinities and NaN get the largest exponent instead.
RINGSERVE_INLINE float Widen(HalfBits value) {
  const uint32_t bits = static_cast<uint32_t>(value);
  const uint32_t magnitude = (bits & 0x7fff) << 13;
  const uint32_t finite = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) * 0x1p112f);
  const uint32_t not_finite = magnitude | 0x7f800000;
  const uint32_t widened = (bits & 0x7c00) == 0x7c00 ? not_finite : finite;
  return std::bit_cast<float>(widened | (bits & 0x8000) << 16);
}

template <typename Accumulated, typename Value>
RINGSERVE_INLINE void Blend(Accumulated* __restrict accumulator, const Value* __restrict values,
                            int64_t n, Accumulated keep, Accumulated take) {
  for (int64_t i = 0; i < n; ++i) {
    accumulator[i] = keep * accumulator[i] + take * Widen(values[i]);
  }
}

template <typename Accumulated, typename Value>
RINGSERVE_INLINE void Copy(Accumulated* __restrict accumulator, const Value* __restrict values,
                           int64_t n) {
  for (int64_t i = 0; i < n; ++i) accumulator[i] = Widen(values[i]);
}

}  // namespace

RINGSERVE_CLONES void BlendRow(double* accumulator, const double* values, int64_t n, double keep,
                               double take) {
  Blend(accumulator, values, n, keep, take);
}
RINGSERVE_CLONES void BlendRow(float* accumulator, const float* values, int64_t n, float keep,
                               float take) {
  Blend(accumulator, values, n, keep, take);
}
RINGSERVE_CLONES void BlendRow(float* accumulator, const BFloat16Bits* values, int64_t n,
                               float keep, float take) {
  Blend(accumulator, values, n, keep, take);
}
RINGSERVE_CLONES void BlendRow(float* accumulator, const HalfBits* values, int64_t n, float keep,
                               float take) {
  Blend(accumulator, values, n, keep, take);
}

RINGSERVE_CLONES void CopyRow(double* accumulator, const double* values, int64_t n) {
  Copy(accumulator, values, n);
}
RINGSERVE_CLONES void CopyRow(float* accumulator, const float* values, int64_t n) {
  Copy(accumulator, values, n);
}
RINGSERVE_CLONES void CopyRow(float* accumulator, const BFloat16Bits* values, int64_t n) {
  Copy(accumulator, values, n);
}
RINGSERVE_CLONES void CopyRow(float* accumulator, const HalfBits* values, int64_t n) {
  Copy(accumulator, values, n);
}

}  // namespace ringserve
