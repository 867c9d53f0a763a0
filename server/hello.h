// What a worker says of itself when it joins: is it well formed, and does it speak our version?
#pragma once

#include <string>

#include "absl/status/status.h"
#include "ringserve/v1/cluster.pb.h"

namespace ringserve {

// INVALID_ARGUMENT, naming the field, value and limit; FAILED_PRECONDITION, naming both versions.
absl::Status CheckHello(const v1::Hello& hello);

// Of a device: what is before the colon, as in cuda:0. Only workers of one kind can exchange bytes.
std::string DeviceKind(const std::string& device);

}  // namespace ringserve
