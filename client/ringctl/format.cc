#include "client/ringctl/format.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace ringserve {

std::string BytesText(uint64_t bytes) {
  if (bytes < 1024) return absl::StrCat(bytes, " B");
  constexpr const char* kUnits[] = {"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  double value = static_cast<double>(bytes) / 1024;
  int unit = 0;
  for (; value >= 1023.95 && unit < 5; ++unit) value /= 1024;
  return absl::StrFormat("%.1f %s", value, kUnits[unit]);
}

std::string SecondsText(double seconds) {
  if (seconds > 0 && seconds < 0.001) return absl::StrFormat("%.0f us", seconds * 1e6);
  return absl::StrFormat(seconds < 10 ? "%.3f s" : "%.1f s", seconds);
}

std::string ErrorText(double error) { return absl::StrFormat("%.1e", error); }

}  // namespace ringserve
