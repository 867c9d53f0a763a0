// A tensor's elements as doubles, whatever their type and alignment.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "ringserve/v1/tensor.pb.h"

namespace ringserve {

// values[i] = element `first` + i of `tensor`, exactly. The elements exist; `dtype` is F32, F64,
// BF16 or F16.
void ReadElements(std::span<const std::byte> tensor, v1::DType dtype, int64_t first,
                  std::span<double> values);

}  // namespace ringserve
