// The header of a safetensors file, as text: names, types, shapes and places of its tensors. Parsed
// token by token, so that a hostile header costs a small multiple of its own size, and refused
// where it is anything but what the format says.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace ringserve {

// The most bytes a header may have: the limit of the reference implementation.
inline constexpr uint64_t kMaxSafetensorsHeaderBytes = 100'000'000;

struct SafetensorsEntry {
  std::string name;
  std::string dtype;            // as the format spells it: "F32", "BF16", ...
  std::vector<int64_t> shape;   // empty: a scalar
  uint64_t begin = 0, end = 0;  // bytes [begin, end) of the data that follow the header

  friend bool operator==(const SafetensorsEntry&, const SafetensorsEntry&) = default;
};

// The entries in ascending order of their place; together they cover [0, data_bytes) without gap or
// overlap, and each has the size that its dtype and shape say. INVALID_ARGUMENT: not so, or not a
// safetensors header; the message names tensor, value and limit.
absl::StatusOr<std::vector<SafetensorsEntry>> ParseSafetensorsHeader(std::string_view text,
                                                                     uint64_t data_bytes);

// What precedes the data in a file with these entries: length and header, padded so that the data
// begin on a multiple of 8 bytes.
std::string WriteSafetensorsHeader(const std::vector<SafetensorsEntry>& entries);

// Bits of one element; 0 for a dtype that the format does not have.
int64_t SafetensorsElementBits(std::string_view dtype);

// Bytes of a tensor. INVALID_ARGUMENT: unknown dtype, negative dimension, more than 2^62 bytes, no
// whole number of bytes. Names dtype or shape.
absl::StatusOr<uint64_t> SafetensorsBytes(std::string_view dtype,
                                          const std::vector<int64_t>& shape);

// "[1, 8, 4096, 128]"
std::string ShapeText(const std::vector<int64_t>& shape);

}  // namespace ringserve
