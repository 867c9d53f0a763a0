// Matrix products: oneDNN's, by the door that LibTorch exports. Their right operands are laid out
// by score_rows.h. Allocates nothing but what oneDNN keeps per thread and shape: few shapes.
#pragma once

#include <cstdint>

#include <ATen/ATen.h>

#include "worker/attention/row_blend.h"

namespace ringserve {

// What is multiplied: pairs of 16-bit numbers into fp32 sums (then the weights are rounded to 16
// bits, as LibTorch does), or fp32 throughout.
enum class Products { kPairs, kWide };

// The fastest that this processor has for the type. Pairs: bf16 where there are AVX-512 BF16 or
// AMX.
Products BestProducts(at::ScalarType type);

// c (+)= a b, a [m, k] and c [m, n] with rows lda and ldc apart, b [k, n] as a panel. Pairs want an
// even k.
void Multiply(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b,
              float* c, int64_t ldc, bool add);
void Multiply(int64_t m, int64_t n, int64_t k, const BFloat16Bits* a, int64_t lda,
              const BFloat16Bits* b, float* c, int64_t ldc, bool add);

// After products of such numbers: leaves the thread's matrix registers to others.
void ReleaseRegisters(const float*);
void ReleaseRegisters(const BFloat16Bits*);

}  // namespace ringserve
