// Templates of wire.h.
#pragma once

#include <cassert>

#include <grpcpp/impl/codegen/proto_utils.h>

#include "proto/wire.h"

namespace ringserve {

template <typename Message>
absl::StatusOr<Message> ParseProto(const grpc::ByteBuffer& message) {
  Message parsed;
  grpc::ByteBuffer copy = message;  // shares the slices: Deserialize consumes its argument
  const grpc::Status status = grpc::SerializationTraits<Message>::Deserialize(&copy, &parsed);
  if (!status.ok())
    return absl::InvalidArgumentError("message is not a valid " + parsed.GetTypeName());
  return parsed;
}

template <typename Message>
grpc::ByteBuffer EncodeProto(const Message& message) {
  grpc::ByteBuffer buffer;
  bool own_buffer = false;
  const grpc::Status status =
      grpc::SerializationTraits<Message>::Serialize(message, &buffer, &own_buffer);
  assert(status.ok());
  return buffer;
}

}  // namespace ringserve
