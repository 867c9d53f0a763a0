// The values of the protocol's enums as people write them: "head-tail" for BALANCER_HEAD_TAIL. They
// follow from the descriptors, so that a new value has its name at once.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "ringserve/v1/attention.pb.h"

namespace ringserve {

// "value 99" for a number without a name.
std::string NameOf(v1::Balancer balancer);
std::string NameOf(v1::RotateMethod rotate);
std::string NameOf(v1::DType dtype);

// What can be asked for: every value but UNSPECIFIED.
std::vector<std::string> BalancerNames();
std::vector<std::string> RotateMethodNames();
std::vector<std::string> DTypeNames();
std::vector<std::string> TensorLayoutNames();

// The value of that name; nothing: there is none.
std::optional<v1::Balancer> BalancerNamed(const std::string& name);
std::optional<v1::RotateMethod> RotateMethodNamed(const std::string& name);
std::optional<v1::DType> DTypeNamed(const std::string& name);
std::optional<v1::TensorLayout> TensorLayoutNamed(const std::string& name);

}  // namespace ringserve
