#include "server/first_message.h"

#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "proto/protocol.h"
#include "proto/validate.h"
#include "proto/wire.h"

namespace ringserve {

absl::StatusOr<v1::AttendHeader> ParseFirstMessage(const grpc::ByteBuffer& message, bool backward) {
  if (CarriesChunks(message)) {
    return absl::InvalidArgumentError("the first message carries chunks: it must be `header`");
  }
  if (message.Length() > kMaxHeaderBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("header is ", message.Length(), " bytes: at most ", kMaxHeaderBytes));
  }
  absl::StatusOr<v1::AttendRequest> request = ParseProto<v1::AttendRequest>(message);
  if (!request.ok()) return request.status();
  if (!request->has_header()) {
    return absl::InvalidArgumentError("the first message carries no `header`");
  }
  if (request->chunks_size() > 0) {
    return absl::InvalidArgumentError(
        "the first message carries `header` and chunks: `header` "
        "must stand alone");
  }
  const auto& unknown = request->GetReflection()->GetUnknownFields(*request);
  if (!unknown.empty()) {
    return absl::UnimplementedError(absl::StrCat("field number ", unknown.field(0).number(),
                                                 " of the first message is unknown to this "
                                                 "server"));
  }
  v1::AttendHeader header = std::move(*request->mutable_header());
  const absl::Status status = ValidateHeader(header, backward);
  if (!status.ok()) return status;
  return header;
}

}  // namespace ringserve
