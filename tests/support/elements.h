// Tensor elements of every type as numbers, and back. Written from the formats' definitions: shares
// nothing with what is tested.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "ringserve/v1/tensor.pb.h"

namespace ringserve::test {

std::vector<double> ToDoubles(std::span<const std::byte> bytes, v1::DType dtype);

// Each number to its nearest element, ties to even.
std::vector<std::byte> FromDoubles(std::span<const double> values, v1::DType dtype);

// Half the distance from 1 to the next element: the relative error of rounding.
double UnitRoundoff(v1::DType dtype);

}  // namespace ringserve::test
