// The first message of an Attend or AttendBackward call: the header, and nothing beside it.
#pragma once

#include <grpcpp/support/byte_buffer.h>

#include "absl/status/statusor.h"
#include "ringserve/v1/attention.pb.h"

namespace ringserve {

// The header, valid (proto/validate.h). INVALID_ARGUMENT: the message is no header, carries
// something beside it, or is larger than kMaxHeaderBytes; ValidateHeader's statuses. UNIMPLEMENTED:
// also a field of the message that this server does not know.
absl::StatusOr<v1::AttendHeader> ParseFirstMessage(const grpc::ByteBuffer& message, bool backward);

}  // namespace ringserve
