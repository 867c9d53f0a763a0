#include "client/ringctl/context_task.h"

#include <algorithm>

namespace ringserve {
namespace {

// The output function of SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number
// generators, 2014): every bit of the result depends on every bit of `x`.
uint64_t Mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

uint64_t Hash(std::string_view bytes, uint64_t seed) {
  uint64_t hash = Mix(seed + bytes.size());
  for (const char byte : bytes) hash = Mix(hash + 0x9e3779b97f4a7c15u + static_cast<uint8_t>(byte));
  return hash;
}

// The last `length` bytes of `text` before `end`, or all of them.
std::string_view Before(std::string_view text, size_t end, size_t length) {
  const size_t begin = end - std::min(end, length);
  return text.substr(begin, end - begin);
}

}  // namespace

v1::AttentionSpec ContextSpec(int64_t tokens) {
  v1::AttentionSpec spec;
  spec.set_batch(1);
  spec.set_q_heads(kQueryHeads);
  spec.set_kv_heads(kKvHeads);
  spec.set_q_len(tokens);
  spec.set_kv_len(tokens);
  spec.set_head_dim(kHeadDim);
  spec.set_value_dim(kByteValues);
  spec.set_dtype(v1::DTYPE_F32);
  spec.set_tensor_layout(v1::TENSOR_LAYOUT_BHSD);
  spec.add_masks()->set_causal(true);
  return spec;
}

std::array<float, kHeadDim> ContextCode(std::string_view context) {
  std::array<float, kHeadDim> code;
  for (int word = 0; word < kHeadDim / 64; ++word) {
    const uint64_t bits = Hash(context, 0x243f6a8885a308d3u + word);
    for (int bit = 0; bit < 64; ++bit)
      code[word * 64 + bit] = (bits >> bit & 1) != 0 ? 1.0f : -1.0f;
  }
  return code;
}

ContextTensors MakeContextTensors(std::string_view text) {
  const size_t tokens = text.size();
  ContextTensors tensors;
  tensors.q.resize(kQueryHeads * tokens * kHeadDim);
  tensors.k.resize(kKvHeads * tokens * kHeadDim);
  tensors.v.resize(kKvHeads * tokens * kByteValues);
  for (int kv_head = 0; kv_head < kKvHeads; ++kv_head) {
    const int length = kContextLengths[kv_head];
    for (size_t at = 0; at < tokens; ++at) {
      const auto key = ContextCode(Before(text, at, length));
      std::copy(key.begin(), key.end(), &tensors.k[(kv_head * tokens + at) * kHeadDim]);
      tensors.v[(kv_head * tokens + at) * kByteValues + static_cast<uint8_t>(text[at])] = 1.0f;

      const auto query = ContextCode(Before(text, at + 1, length));
      for (size_t i = 0; i < kSharpness.size(); ++i) {
        const size_t head = kv_head * kSharpness.size() + i;
        std::transform(query.begin(), query.end(), &tensors.q[(head * tokens + at) * kHeadDim],
                       [&](float sign) { return sign * kSharpness[i]; });
      }
    }
  }
  return tensors;
}

}  // namespace ringserve
