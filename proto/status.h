// absl::Status inside, grpc::Status at the edge. Codes are the same numbers.
#pragma once

#include <chrono>
#include <optional>

#include <grpcpp/client_context.h>
#include <grpcpp/server_context.h>
#include <grpcpp/support/status.h>

#include "absl/status/status.h"

namespace ringserve {

grpc::Status ToGrpc(const absl::Status& status);
absl::Status FromGrpc(const grpc::Status& status);

// Marks an error as worth another attempt after `delay`. Travels as a status payload inside a
// process and as trailing metadata (kRetryAfterKey) between processes.
absl::Status WithRetryAfter(absl::Status status, std::chrono::milliseconds delay);
std::optional<std::chrono::milliseconds> RetryAfter(const absl::Status& status);

// Server side: puts the mark into the trailing metadata. Call before Finish.
void SendRetryAfter(const absl::Status& status, grpc::CallbackServerContext* context);

// Client side: the status of a finished call, with the mark that its trailing metadata carried.
absl::Status FromGrpc(const grpc::Status& status, const grpc::ClientContext& context);

}  // namespace ringserve
