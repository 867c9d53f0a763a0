#include "proto/status.h"

#include <algorithm>
#include <string>

#include "absl/strings/cord.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "proto/protocol.h"

namespace ringserve {
namespace {

constexpr char kRetryPayload[] = "ringserve.v1/retry-after-ms";
constexpr std::chrono::milliseconds kLongestRetryDelay = std::chrono::hours(1);

// Trailing metadata must fit into 8 KiB at any client, and gRPC writes each byte that is not
// printable ASCII as three.
constexpr size_t kLongestMessage = 2048;
constexpr absl::string_view kCutMark = " ... (cut)";

std::string Shortened(absl::string_view message) {
  if (message.size() <= kLongestMessage) return std::string(message);
  size_t end = kLongestMessage - kCutMark.size();
  const auto continues = [&](size_t at) {
    return (static_cast<unsigned char>(message[at]) & 0xC0) == 0x80;
  };
  while (end > 0 && continues(end)) --end;
  return absl::StrCat(message.substr(0, end), kCutMark);
}

std::optional<std::chrono::milliseconds> ParseDelay(absl::string_view text) {
  int64_t count = 0;
  if (!absl::SimpleAtoi(text, &count) || count < 0) return std::nullopt;
  return std::chrono::milliseconds(std::min<int64_t>(count, kLongestRetryDelay.count()));
}

}  // namespace

grpc::Status ToGrpc(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  return grpc::Status(static_cast<grpc::StatusCode>(status.raw_code()),
                      Shortened(status.message()));
}

absl::Status FromGrpc(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
}

absl::Status WithRetryAfter(absl::Status status, std::chrono::milliseconds delay) {
  const auto count = std::clamp<int64_t>(delay.count(), 0, kLongestRetryDelay.count());
  status.SetPayload(kRetryPayload, absl::Cord(absl::StrCat(count)));
  return status;
}

std::optional<std::chrono::milliseconds> RetryAfter(const absl::Status& status) {
  const absl::optional<absl::Cord> payload = status.GetPayload(kRetryPayload);
  if (!payload.has_value()) return std::nullopt;
  return ParseDelay(std::string(*payload));
}

void SendRetryAfter(const absl::Status& status, grpc::CallbackServerContext* context) {
  const std::optional<std::chrono::milliseconds> delay = RetryAfter(status);
  if (delay.has_value()) context->AddTrailingMetadata(kRetryAfterKey, absl::StrCat(delay->count()));
}

absl::Status FromGrpc(const grpc::Status& status, const grpc::ClientContext& context) {
  absl::Status converted = FromGrpc(status);
  if (converted.ok()) return converted;
  const auto& trailing = context.GetServerTrailingMetadata();
  const auto mark = trailing.find(kRetryAfterKey);
  if (mark == trailing.end()) return converted;
  const std::optional<std::chrono::milliseconds> delay =
      ParseDelay(absl::string_view(mark->second.data(), mark->second.size()));
  return delay.has_value() ? WithRetryAfter(std::move(converted), *delay) : converted;
}

}  // namespace ringserve
