#include "client/ringctl/demo_text.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"

namespace ringserve {
namespace {

constexpr char kLicences[] = "/usr/share/common-licenses";
// Version after version of one licence: long passages return far behind.
constexpr const char* kLicenceOrder[] = {"GPL-1",  "GPL-2",    "GPL-3",    "LGPL-2",     "LGPL-2.1",
                                         "LGPL-3", "GFDL-1.2", "GFDL-1.3", "Apache-2.0", "Artistic",
                                         "BSD",    "MPL-1.1",  "MPL-2.0"};

// Appends to `into` until it has `tokens` bytes or the file ends.
absl::Status AppendFile(const std::string& path, uint64_t tokens, std::string& into) {
  const auto failed = [&] {
    return absl::NotFoundError(absl::StrCat(path, ": ", std::strerror(errno)));
  };
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) return failed();
  char buffer[1 << 16];
  absl::Status status;
  while (into.size() < tokens) {
    const ssize_t count =
        read(file, buffer, std::min<uint64_t>(sizeof(buffer), tokens - into.size()));
    if (count < 0) status = failed();
    if (count <= 0) break;
    into.append(buffer, static_cast<size_t>(count));
  }
  close(file);
  return status;
}

}  // namespace

absl::StatusOr<DemoText> ReadDemoText(const std::string& path, uint64_t tokens) {
  DemoText text;
  if (!path.empty()) {
    const absl::Status status = AppendFile(path, tokens, text.bytes);
    if (!status.ok()) return status;
    if (text.bytes.empty()) return absl::InvalidArgumentError(absl::StrCat(path, " is empty"));
    text.origin = path;
    return text;
  }
  for (const char* licence : kLicenceOrder) {
    // Not every release has every one of them.
    (void)AppendFile(absl::StrCat(kLicences, "/", licence), tokens, text.bytes).ok();
  }
  if (text.bytes.empty()) {
    return absl::NotFoundError(
        absl::StrCat("no licence texts in ", kLicences, ": name a text to attend over"));
  }
  text.origin = absl::StrCat("the licence texts in ", kLicences);
  return text;
}

}  // namespace ringserve
