// A tensor's elements as doubles, whatever their type and alignment.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>

#include "ringserve/v1/tensor.pb.h"

namespace ringserve {

inline constexpr double kInfinity = std::numeric_limits<double>::infinity();

// values[i] = element `first` + i of `tensor`, exactly. The elements exist; `dtype` is F32, F64,
// BF16 or F16.
void ReadElements(std::span<const std::byte> tensor, v1::DType dtype, int64_t first,
                  std::span<double> values);

}  // namespace ringserve
