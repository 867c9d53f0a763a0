// In what pieces chunks are cut, so that rows of a few bytes do not make for millions of runs at a
// time.
#pragma once

#include <cstdint>

#include "proto/tensor_shape.h"

namespace ringserve {

inline constexpr uint64_t kPieceRows = 16'384;

inline uint64_t PieceBytes(const TensorShape& shape) {
  return kPieceRows * static_cast<uint64_t>(shape.row_bytes);
}

}  // namespace ringserve
