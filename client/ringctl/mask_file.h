// A file with the mask of a request: a Mask in protobuf JSON, or an array with one per batch row.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "ringserve/v1/attention.pb.h"

namespace ringserve {

// The most bytes such a file may have: several times what the largest header holds.
inline constexpr int64_t kMaxMaskFileBytes = 64 << 20;

struct MaskFile {
  google::protobuf::RepeatedPtrField<v1::Mask> masks;
  bool per_row = false;  // an array
};

// INVALID_ARGUMENT: cannot be read, no JSON, no Mask, a field that the message does not have, a
// name given twice. Names the file and the place.
absl::StatusOr<MaskFile> ReadMaskFile(const std::string& path);

}  // namespace ringserve
