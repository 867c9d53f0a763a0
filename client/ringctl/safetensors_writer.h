// A safetensors file in the making: its tensors' bytes are written in place, into the mapped file,
// and the file appears under its name only when it is complete. Until then nothing is seen, and an
// older file of that name stays as it is.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace ringserve {

class SafetensorsWriter {
 public:
  struct Tensor {
    std::string name;
    std::string dtype;  // "F32", "BF16", ...
    std::vector<int64_t> shape;
  };

  // Takes the whole space at once, so that a full disk is known before anything is computed.
  // `inputs`: files that `path` must not be, by whatever name. INVALID_ARGUMENT: a tensor that the
  // format does not know or a name given twice; `path` is one of `inputs`, or no regular file.
  // NOT_FOUND, PERMISSION_DENIED, RESOURCE_EXHAUSTED (disk full) or INTERNAL: the system refuses.
  // Messages begin with `path`.
  static absl::StatusOr<std::unique_ptr<SafetensorsWriter>> Create(
      const std::string& path, const std::vector<Tensor>& tensors,
      const std::vector<std::string>& inputs = {});
  // Leaves nothing behind unless Commit was OK.
  ~SafetensorsWriter();
  SafetensorsWriter(const SafetensorsWriter&) = delete;
  SafetensorsWriter& operator=(const SafetensorsWriter&) = delete;

  // The bytes of tensors[i]: zero at first; to be written before Commit.
  std::span<std::byte> bytes(size_t i) const { return bytes_[i]; }

  // Waits until the disk has everything, then the file takes its name, once. RESOURCE_EXHAUSTED,
  // PERMISSION_DENIED or INTERNAL: it does not.
  absl::Status Commit();

 private:
  explicit SafetensorsWriter(std::string path);
  absl::Status OpenFile();
  absl::Status Fill(const std::string& header, uint64_t data_bytes);
  absl::Status Error(int error, const char* what) const;

  const std::string path_;
  std::string temporary_path_;  // empty while the file has no name at all
  int file_ = -1;
  std::span<std::byte> mapped_;
  std::vector<std::span<std::byte>> bytes_;
};

}  // namespace ringserve
