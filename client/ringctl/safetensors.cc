#include "client/ringctl/safetensors.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "client/ringctl/safetensors_header.h"

namespace ringserve {
namespace {

constexpr uint64_t kLengthBytes = 8;

absl::Status Invalid(const std::string& path, absl::string_view why) {
  return absl::InvalidArgumentError(absl::StrCat(path, ": ", why));
}

absl::StatusOr<std::span<const std::byte>> Map(const std::string& path) {
  // O_NONBLOCK: a FIFO without a writer would keep us here.
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (file < 0) return absl::ErrnoToStatus(errno, absl::StrCat(path, ": cannot open"));
  struct stat status;
  if (fstat(file, &status) != 0 || !S_ISREG(status.st_mode)) {
    close(file);
    return Invalid(path, "not a regular file");
  }
  const uint64_t size = status.st_size;
  if (size < kLengthBytes) {
    close(file);
    return Invalid(path, absl::StrCat("not a safetensors file: ", size, " bytes, at least ",
                                      kLengthBytes, " are needed"));
  }
  void* mapped = mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file, 0);
  const int error = errno;
  close(file);
  if (mapped == MAP_FAILED)
    return absl::ErrnoToStatus(error, absl::StrCat(path, ": cannot map ", size, " bytes"));
  return std::span(static_cast<const std::byte*>(mapped), size);
}

}  // namespace

SafetensorsFile::SafetensorsFile(std::string path, std::span<const std::byte> mapped)
    : path_(std::move(path)), mapped_(mapped) {}

SafetensorsFile::~SafetensorsFile() {
  munmap(const_cast<std::byte*>(mapped_.data()), mapped_.size());
}

absl::StatusOr<std::unique_ptr<SafetensorsFile>> SafetensorsFile::Open(const std::string& path) {
  const absl::StatusOr<std::span<const std::byte>> mapped = Map(path);
  if (!mapped.ok()) return mapped.status();
  auto file = std::unique_ptr<SafetensorsFile>(new SafetensorsFile(path, *mapped));

  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, mapped->data(), kLengthBytes);
  if (header_bytes > kMaxSafetensorsHeaderBytes) {
    return Invalid(path,
                   absl::StrCat("not a safetensors file: its header would have ", header_bytes,
                                " bytes, at most ", kMaxSafetensorsHeaderBytes, " are allowed"));
  }
  if (header_bytes > mapped->size() - kLengthBytes) {
    return Invalid(
        path, absl::StrCat("not a safetensors file, or cut short: its header would have ",
                           header_bytes, " bytes, ", mapped->size() - kLengthBytes, " follow"));
  }
  const std::span<const std::byte> header = mapped->subspan(kLengthBytes, header_bytes);
  const std::span<const std::byte> data = mapped->subspan(kLengthBytes + header_bytes);
  absl::StatusOr<std::vector<SafetensorsEntry>> entries = ParseSafetensorsHeader(
      std::string_view(reinterpret_cast<const char*>(header.data()), header.size()), data.size());
  if (!entries.ok()) return Invalid(path, entries.status().message());
  for (SafetensorsEntry& entry : *entries) {
    file->tensors_[std::move(entry.name)] = {std::move(entry.dtype), std::move(entry.shape),
                                             data.subspan(entry.begin, entry.end - entry.begin)};
  }
  return file;
}

absl::StatusOr<SafetensorsTensor> SafetensorsFile::Tensor(const std::string& name) const {
  const auto found = tensors_.find(name);
  if (found != tensors_.end()) return found->second;
  std::vector<std::string> names;
  for (const auto& [other, tensor] : tensors_) {
    if (names.size() == 8) {
      names.push_back("...");
      break;
    }
    names.push_back(other);
  }
  return Invalid(path_, absl::StrCat("holds no tensor \"", name, "\": it holds ",
                                     names.empty() ? "none" : absl::StrJoin(names, ", ")));
}

}  // namespace ringserve
