#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "client/ringctl/plan_picture.h"

namespace ringserve {
namespace {

absl::Status WriteAll(int file, const std::string& bytes) {
  for (size_t done = 0; done < bytes.size();) {
    const ssize_t written = write(file, bytes.data() + done, bytes.size() - done);
    if (written < 0 && errno != EINTR) return absl::ErrnoToStatus(errno, "cannot write the file");
    if (written > 0) done += static_cast<size_t>(written);
  }
  return absl::OkStatus();
}

// By way of a file of another name, so that nobody sees half a picture.
absl::Status Replace(const std::string& path, const std::string& bytes) {
  struct stat there;
  if (stat(path.c_str(), &there) == 0 && !S_ISREG(there.st_mode))
    return absl::InvalidArgumentError("exists and is not a regular file");
  const std::string partial = absl::StrCat(path, ".", getpid(), ".partial");
  const int file = open(partial.c_str(), O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0666);
  if (file < 0) return absl::ErrnoToStatus(errno, "cannot create the file");
  absl::Status status = WriteAll(file, bytes);
  if (close(file) != 0 && status.ok()) status = absl::ErrnoToStatus(errno, "cannot write the file");
  if (status.ok() && rename(partial.c_str(), path.c_str()) != 0)
    status = absl::ErrnoToStatus(errno, "cannot name the file");
  if (!status.ok()) unlink(partial.c_str());
  return status;
}

}  // namespace

absl::Status CheckPicturePath(const std::string& path) {
  if (absl::EndsWith(path, ".svg") || absl::EndsWith(path, ".png")) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("--picture ", path, ": the name must end in .svg or .png"));
}

absl::Status WritePicture(const Drawing& drawing, const std::string& path) {
  absl::Status status = CheckPicturePath(path);
  if (!status.ok()) return status;
  const absl::StatusOr<std::string> bytes =
      absl::EndsWith(path, ".svg") ? EncodeSvg(drawing) : EncodePng(drawing);
  if (!bytes.ok()) return bytes.status();
  status = Replace(path, *bytes);
  if (status.ok()) return status;
  return absl::Status(status.code(), absl::StrCat(path, ": ", status.message()));
}

}  // namespace ringserve
