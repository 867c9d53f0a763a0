// The inner loops of a merge: one row of values taken into one row of an accumulator. Compiled for
// AVX-512, AVX2 and the baseline; the processor chooses when the program is loaded. Knows no
// tensors.
#pragma once

#include <cstdint>

namespace ringserve {

// bfloat16 and IEEE half by their bits.
enum class BFloat16Bits : uint16_t {};
enum class HalfBits : uint16_t {};

// accumulator[i] = keep * accumulator[i] + take * values[i]. The rows do not overlap.
void BlendRow(double* accumulator, const double* values, int64_t n, double keep, double take);
void BlendRow(float* accumulator, const float* values, int64_t n, float keep, float take);

// accumulator[i] = values[i], widened: what the accumulator held is not read.
void CopyRow(double* accumulator, const double* values, int64_t n);
void CopyRow(float* accumulator, const float* values, int64_t n);
void CopyRow(float* accumulator, const BFloat16Bits* values, int64_t n);
void CopyRow(float* accumulator, const HalfBits* values, int64_t n);

}  // namespace ringserve
