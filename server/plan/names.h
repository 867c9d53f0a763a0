// The options' values as people write them.
#pragma once

#include <string>

#include "ringserve/v1/attention.pb.h"

namespace ringserve {

std::string BalancerName(v1::Balancer balancer);  // "auto", "contiguous", "head-tail", ...
std::string RotateName(v1::RotateMethod rotate);  // "auto", "all-to-all", "all-gather", ...

}  // namespace ringserve
