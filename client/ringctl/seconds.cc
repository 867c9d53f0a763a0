#include "client/ringctl/seconds.h"

#include <cmath>
#include <string>

#include "absl/strings/str_cat.h"

namespace ringserve {
namespace {

constexpr double kLeastSeconds = 0.001;
constexpr double kMostSeconds = 1e6;

CLI::Validator From(double least) {
  const auto check = [least](const std::string& text) -> std::string {
    double seconds = 0;
    if (CLI::detail::lexical_cast(text, seconds) && seconds >= least && seconds <= kMostSeconds) {
      return "";
    }
    return absl::StrCat("Value ", text, " not in range ", least, " to ", kMostSeconds);
  };
  return CLI::Validator(check, absl::StrCat("FLOAT in [", least, " - 1e6]"));
}

}  // namespace

void AddWaitForReady(CLI::App& command, double& seconds) {
  command
      .add_option("--wait-for-ready", seconds,
                  "Seconds for which a server that is not there, drains or has too few workers is "
                  "asked again")
      ->check(From(0))
      ->capture_default_str();
}

CLI::Validator SecondsRange() { return From(kLeastSeconds); }

std::chrono::milliseconds Milliseconds(double seconds) {
  return std::chrono::milliseconds(std::llround(std::ceil(seconds * 1e3)));
}

}  // namespace ringserve
