// A request over a real text whose right answer is known without any model: causal attention that
// looks up what followed the same context before.
//
//   q_i = sharpness * code(the last n bytes up to and including byte i)     what precedes byte i+1
//   k_j = code(the n bytes before byte j)                                   what precedes byte j
//   v_j = one-hot(byte j)                                                   what followed there
//
// code spreads a context's hash over the signs of kHeadDim numbers. Causal attention (j <= i) then
// returns, for query i, the distribution of the byte that followed the same n bytes anywhere
// earlier: never byte i+1 itself, for its key is not yet visible.
//
// Why that is exact enough: with the usual scale 1/sqrt(128), a key of the same context scores
// sqrt(128) * sharpness (34 to 51), all others sharpness * z where z is about standard normal. So
// what leaks from S other keys is, expected, S * e^(sharpness^2 / 2 - sqrt(128) * sharpness) of the
// whole: below 3e-9 for S = 16,384 and 2e-7 for a million, far below kTolerance. The codes'
// products are sums of equal multiples of 1/2, exact in f32, so that keys of one context score the
// same to the last bit.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "ringserve/v1/attention.pb.h"

namespace ringserve {

inline constexpr int kHeadDim = 128;
inline constexpr int kByteValues = 256;  // value dim

// One K/V head per context length n, one query head per K/V head and sharpness.
inline constexpr std::array<int, 2> kContextLengths = {6, 12};
inline constexpr std::array<float, 4> kSharpness = {3.0f, 3.5f, 4.0f, 4.5f};
inline constexpr int kKvHeads = kContextLengths.size();
inline constexpr int kQueryHeads = kKvHeads * kSharpness.size();

// f32, [1, heads, tokens, dim], causal.
v1::AttentionSpec ContextSpec(int64_t tokens);

struct ContextTensors {
  std::vector<float> q, k, v;
};

// One token per byte of `text`. Where fewer than n bytes precede, the context is those alone: it
// equals no other.
ContextTensors MakeContextTensors(std::string_view text);

// Signs, +1 or -1, that depend on `context` alone.
std::array<float, kHeadDim> ContextCode(std::string_view context);

// Bytes that q, k, v and the answer take per token.
inline constexpr uint64_t kContextBytesPerToken =
    sizeof(float) * (kQueryHeads * (kHeadDim + kByteValues) + kKvHeads * (kHeadDim + kByteValues));

}  // namespace ringserve
