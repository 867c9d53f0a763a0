#include "client/ringctl/seconds.h"

#include <cmath>
#include <string>

#include "absl/strings/str_cat.h"

namespace ringserve {
namespace {

constexpr double kLeastSeconds = 0.001;
constexpr double kMostSeconds = 1e6;

std::string Check(const std::string& text) {
  double seconds = 0;
  if (CLI::detail::lexical_cast(text, seconds) && seconds >= kLeastSeconds &&
      seconds <= kMostSeconds) {
    return "";
  }
  return absl::StrCat("Value ", text, " not in range ", kLeastSeconds, " to ", kMostSeconds);
}

}  // namespace

void AddWaitForReady(CLI::App& command, double& seconds) {
  command
      .add_option("--wait-for-ready", seconds,
                  "Seconds for which a server that is not there, drains or has too few workers is "
                  "asked again")
      ->check(SecondsRange());
}

CLI::Validator SecondsRange() { return CLI::Validator(Check, "FLOAT in [0.001 - 1e6]"); }

std::chrono::milliseconds Milliseconds(double seconds) {
  return std::chrono::milliseconds(std::llround(std::ceil(seconds * 1e3)));
}

}  // namespace ringserve
