// A safetensors file for reading: its tensors as spans into the mapped file, nothing copied. Trusts
// nothing that the file says about itself.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace ringserve {

struct SafetensorsTensor {
  std::string dtype;           // "F32", "BF16", ...
  std::vector<int64_t> shape;  // each >= 0
  // As many as dtype and shape say, anywhere in memory: aligned to nothing.
  std::span<const std::byte> bytes;
};

class SafetensorsFile {
 public:
  // Maps the file; whoever shrinks it meanwhile ends this process (SIGBUS). NOT_FOUND,
  // PERMISSION_DENIED or INTERNAL: it cannot be opened or mapped. INVALID_ARGUMENT: not a
  // regular file, or not a safetensors file (see safetensors_header.h). Messages begin with `path`.
  static absl::StatusOr<std::unique_ptr<SafetensorsFile>> Open(const std::string& path);
  ~SafetensorsFile();
  SafetensorsFile(const SafetensorsFile&) = delete;
  SafetensorsFile& operator=(const SafetensorsFile&) = delete;

  const std::string& path() const { return path_; }
  const std::map<std::string, SafetensorsTensor>& tensors() const { return tensors_; }

  // Valid as long as the file. INVALID_ARGUMENT: there is none of that name; says which there are.
  absl::StatusOr<SafetensorsTensor> Tensor(const std::string& name) const;

 private:
  SafetensorsFile(std::string path, std::span<const std::byte> mapped);

  const std::string path_;
  const std::span<const std::byte> mapped_;
  std::map<std::string, SafetensorsTensor> tensors_;
};

}  // namespace ringserve
