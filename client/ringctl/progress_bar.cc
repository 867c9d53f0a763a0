#include "client/ringctl/progress_bar.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>

#include "absl/strings/str_cat.h"
#include "client/ringctl/format.h"

namespace ringserve {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds kMoment{500};
constexpr int kWidth = 32;

}  // namespace

ProgressBar::ProgressBar(uint64_t upload_bytes)
    : upload_bytes_(upload_bytes), terminal_(isatty(STDERR_FILENO) == 1), begin_(Clock::now()) {}

ProgressBar::~ProgressBar() { Clear(); }

void ProgressBar::Update(uint64_t done, uint64_t total) {
  if (!terminal_ || Clock::now() - begin_ < kMoment) return;
  const char* phase = done < upload_bytes_   ? "uploading"
                      : done > upload_bytes_ ? "downloading"
                                             : "computing";
  std::fprintf(stderr, "\r%-11s %s %s of %s\033[K", phase, BarText(done, total, kWidth).c_str(),
               BytesText(done).c_str(), BytesText(total).c_str());
  std::fflush(stderr);
  drawn_ = true;
}

void ProgressBar::Clear() {
  if (!drawn_) return;
  std::fprintf(stderr, "\r\033[K");
  std::fflush(stderr);
  drawn_ = false;
}

std::string BarText(uint64_t done, uint64_t total, int width) {
  const double share = total == 0 ? 1 : std::min(1.0, static_cast<double>(done) / total);
  const int filled = static_cast<int>(share * width);
  return absl::StrCat("[", std::string(filled, '#'), std::string(width - filled, '-'), "]");
}

}  // namespace ringserve
