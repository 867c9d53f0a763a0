// A tile of bf16 or f16 numbers, added into the fp32 accumulator without being rounded on the way:
// LibTorch's kernel would round every partial to 16 bits. The products are oneDNN's, by the door
// that LibTorch exports; what lies between them is in score_rows.h. Online softmax over blocks of
// keys: Dao et al., FlashAttention, arXiv 2205.14135, algorithm 1.
#pragma once

#include <ATen/ATen.h>

#include "worker/attention/partial.h"

namespace ringserve {

// What is multiplied: pairs of 16-bit numbers into fp32 sums (then the weights are rounded to 16
// bits, as LibTorch does), or fp32 throughout.
enum class Products { kPairs, kWide };

// The fastest that this processor has for the type. Pairs: bf16 where there are AVX-512 BF16 or
// AMX.
Products BestProducts(at::ScalarType type);

// The most keys that are laid out at once, of each batch row and key head.
inline constexpr int64_t kKeysLaidOut = 2048;

// Rows of `into` take in what they see of the keys: row i sees key j iff lo <= j - i <= hi.
// q [B, Hq, Sq, D], k [B, Hkv, Sk, D], v [B, Hkv, Sk, Dv], of the same 16-bit type, last dim
// contiguous; `into` fp32, [B, Hq, Sq, Dv]. Rows that see no key, or whose scores are all -inf,
// stay as they are. `scale` is positive. kPairs wants bf16. Takes, for K and V, at most
//   4 B Hkv min(Sk + 64, kKeysLaidOut) (D + Dv + 16) bytes
// and per thread less than 64 (512 + D + Dv + 16) 6 bytes.
void AccumulateNarrow(const Partial& into, const at::Tensor& q, const at::Tensor& k,
                      const at::Tensor& v, int64_t lo, int64_t hi, float scale, Products products);

}  // namespace ringserve
