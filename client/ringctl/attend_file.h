// The input file of `attend` and `plan`: q, k and v, and the spec that their shapes and types say.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "client/ringctl/safetensors.h"
#include "ringserve/client.h"
#include "ringserve/v1/attention.pb.h"

namespace ringserve {

struct AttendFile {
  std::unique_ptr<SafetensorsFile> file;
  v1::AttentionSpec spec;  // dims, dtype and tensor layout
  AttendInputs inputs;     // inside `file`
};

// `layout`: the order of the tensors' dimensions. INVALID_ARGUMENT and others: the file cannot be
// read (see SafetensorsFile), lacks a tensor, or its tensors do not fit together or are more than
// any request may be; names file, tensor, dims and what was expected.
absl::StatusOr<AttendFile> OpenAttendFile(const std::string& path, v1::TensorLayout layout);

}  // namespace ringserve
