// A tile added into the fp32 accumulator by our own loop: fp32, bf16 and f16 numbers, any band, and
// nothing rounded to 16 bits on the way, as LibTorch's kernel would round every partial. The
// products are in products.h, what lies between them in score_rows.h. Online softmax over blocks of
// keys: Dao et al., FlashAttention, arXiv 2205.14135, algorithm 1.
#pragma once

#include <ATen/ATen.h>

#include "worker/attention/partial.h"
#include "worker/attention/products.h"
#include "worker/attention/score_terms.h"

namespace ringserve {

// The most keys that are laid out at once, of each batch row and key head.
inline constexpr int64_t kKeysLaidOut = 2048;

// Up to so many rows of scores per key head (queries times the heads that share it) the keys are
// read as they lie: to lay them out would take longer.
inline constexpr int64_t kFewRows = 8;

// Rows of `into` take in what they see of the keys: row i sees key j iff lo <= j - i <= hi.
// q [B, Hq, Sq, D], k [B, Hkv, Sk, D], v [B, Hkv, Sk, Dv], of the same type, fp32, bf16 or f16,
// last dim contiguous; `into` fp32, [B, Hq, Sq, Dv]. Rows that see no key, or whose scores are all
// -inf, stay as they are. `scale` is positive. kPairs wants bf16. Takes, for K and V, at most
//   4 B Hkv min(Sk + 64, kKeysLaidOut) (D + Dv + 16) bytes,
// for a closed accumulator and more than kKeysLaidOut keys 4 B Hq Sq,
// and per thread less than 64 (512 + D + Dv + 16) 6 bytes.
void AccumulateFlash(const Partial& into, const at::Tensor& q, const at::Tensor& k,
                     const at::Tensor& v, int64_t lo, int64_t hi, float scale, Products products,
                     const ScoreTerms& terms = {});

}  // namespace ringserve
