#include "client/ringctl/safetensors_writer.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <limits>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/ringctl/safetensors_header.h"

namespace ringserve {
namespace {

std::string FolderOf(const std::string& path) {
  const size_t slash = path.rfind('/');
  return slash == std::string::npos ? "." : path.substr(0, slash + 1);
}

// The places of `tensors` one after the other.
absl::StatusOr<std::vector<SafetensorsEntry>> Place(
    const std::vector<SafetensorsWriter::Tensor>& tensors) {
  std::vector<SafetensorsEntry> entries;
  std::set<std::string> names;
  uint64_t next = 0;
  for (const SafetensorsWriter::Tensor& tensor : tensors) {
    if (tensor.name == "__metadata__" || !names.insert(tensor.name).second)
      return absl::InvalidArgumentError(absl::StrCat("tensor name \"", tensor.name, "\" is taken"));
    const absl::StatusOr<uint64_t> bytes = SafetensorsBytes(tensor.dtype, tensor.shape);
    if (!bytes.ok()) return bytes.status();
    if (*bytes > std::numeric_limits<int64_t>::max() / 2 - next)
      return absl::InvalidArgumentError("the tensors take more than 2^62 bytes");
    entries.push_back({tensor.name, tensor.dtype, tensor.shape, next, next + *bytes});
    next += *bytes;
  }
  return entries;
}

absl::Status CheckDestination(const std::string& path, const std::vector<std::string>& inputs) {
  if (path.empty()) return absl::InvalidArgumentError("the name is empty");
  struct stat there;
  if (stat(path.c_str(), &there) != 0) return absl::OkStatus();
  if (!S_ISREG(there.st_mode))
    return absl::InvalidArgumentError("exists and is not a regular file");
  for (const std::string& input : inputs) {
    struct stat other;
    if (stat(input.c_str(), &other) == 0 && other.st_dev == there.st_dev &&
        other.st_ino == there.st_ino) {
      return absl::InvalidArgumentError(
          absl::StrCat("is the input file ", input, ": choose another name for the output"));
    }
  }
  return absl::OkStatus();
}

}  // namespace

SafetensorsWriter::SafetensorsWriter(std::string path) : path_(std::move(path)) {}

SafetensorsWriter::~SafetensorsWriter() {
  if (!mapped_.empty()) munmap(mapped_.data(), mapped_.size());
  if (file_ >= 0) close(file_);
  if (!temporary_path_.empty()) unlink(temporary_path_.c_str());
}

absl::Status SafetensorsWriter::Error(int error, const char* what) const {
  return absl::ErrnoToStatus(error, absl::StrCat(path_, ": cannot ", what));
}

// A file without a name vanishes with the process, however that ends; not every file system has
// them.
absl::Status SafetensorsWriter::OpenFile() {
  const std::string folder = FolderOf(path_);
  if (access("/proc/self/fd", X_OK) == 0) {
    file_ = open(folder.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0666);
    if (file_ >= 0) return absl::OkStatus();
  }
  const std::string name = absl::StrCat(path_, ".", getpid(), ".partial");
  file_ = open(name.c_str(), O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC, 0666);
  if (file_ < 0) return Error(errno, "create the file");
  temporary_path_ = name;
  return absl::OkStatus();
}

absl::Status SafetensorsWriter::Fill(const std::string& header, uint64_t data_bytes) {
  const uint64_t size = header.size() + data_bytes;
  // A hole would end this process (SIGBUS) where the disk fills up later.
  const int error = posix_fallocate(file_, 0, static_cast<off_t>(size));
  if (error != 0) return Error(error, absl::StrCat("reserve ", size, " bytes").c_str());
  void* mapped = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, file_, 0);
  if (mapped == MAP_FAILED) return Error(errno, absl::StrCat("map ", size, " bytes").c_str());
  mapped_ = std::span(static_cast<std::byte*>(mapped), size);
  std::memcpy(mapped_.data(), header.data(), header.size());
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<SafetensorsWriter>> SafetensorsWriter::Create(
    const std::string& path, const std::vector<Tensor>& tensors,
    const std::vector<std::string>& inputs) {
  const absl::StatusOr<std::vector<SafetensorsEntry>> entries = Place(tensors);
  if (!entries.ok())
    return absl::InvalidArgumentError(absl::StrCat(path, ": ", entries.status().message()));
  absl::Status status = CheckDestination(path, inputs);
  if (!status.ok()) return absl::InvalidArgumentError(absl::StrCat(path, ": ", status.message()));

  auto writer = std::unique_ptr<SafetensorsWriter>(new SafetensorsWriter(path));
  status = writer->OpenFile();
  if (!status.ok()) return status;
  const std::string header = WriteSafetensorsHeader(*entries);
  status = writer->Fill(header, entries->empty() ? 0 : entries->back().end);
  if (!status.ok()) return status;
  const std::span<std::byte> data = writer->mapped_.subspan(header.size());
  for (const SafetensorsEntry& entry : *entries)
    writer->bytes_.push_back(data.subspan(entry.begin, entry.end - entry.begin));
  return writer;
}

absl::Status SafetensorsWriter::Commit() {
  if (fsync(file_) != 0) return Error(errno, "write the file");
  if (temporary_path_.empty()) {
    const std::string name = absl::StrCat(path_, ".", getpid(), ".partial");
    if (linkat(AT_FDCWD, absl::StrCat("/proc/self/fd/", file_).c_str(), AT_FDCWD, name.c_str(),
               AT_SYMLINK_FOLLOW) != 0) {
      return Error(errno, "name the file");
    }
    temporary_path_ = name;
  }
  if (rename(temporary_path_.c_str(), path_.c_str()) != 0) return Error(errno, "name the file");
  temporary_path_.clear();
  return absl::OkStatus();
}

}  // namespace ringserve
