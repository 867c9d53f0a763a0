#include "worker/device.h"

#include <cstddef>
#include <optional>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"

namespace ringserve {
namespace {

// The N of cuda:N.
std::optional<int> IndexOf(absl::string_view device) {
  int index = 0;
  if (!absl::ConsumePrefix(&device, "cuda:") || device.empty() || device.size() > 4 ||
      device.find_first_not_of("0123456789") != absl::string_view::npos ||
      !absl::SimpleAtoi(device, &index)) {
    return std::nullopt;
  }
  return index;
}

std::string Version(int cuda) { return absl::StrCat(cuda / 1000, ".", cuda % 1000 / 10); }

// Why there is no device; empty: there are some.
std::string NoDevice(const CudaMachine& machine) {
  if (!machine.built) return "this program is built without CUDA (./dev build cuda)";
  if (!machine.error.empty()) return absl::StrCat("CUDA says: ", machine.error);
  if (machine.driver == 0) {
    return absl::StrCat("there is no NVIDIA driver; CUDA ", Version(machine.runtime),
                        " wants one that serves CUDA ", machine.runtime / 1000, ".0 or newer");
  }
  if (machine.too_old) {
    return absl::StrCat("the NVIDIA driver serves CUDA ", Version(machine.driver),
                        " at most; CUDA ", Version(machine.runtime), " wants one that serves CUDA ",
                        machine.runtime / 1000, ".0 or newer");
  }
  if (machine.devices.empty()) return "the NVIDIA driver sees none";
  return "";
}

std::string Describe(const CudaDevice& device) {
  return absl::StrFormat("%s, compute capability %d.%d, %.1f GiB", device.name, device.major,
                         device.minor, static_cast<double>(device.memory_bytes) / (1 << 30));
}

}  // namespace

absl::Status CheckDevice(const std::string& asked) {
  if (asked == "auto" || asked == "cpu" || IndexOf(asked).has_value()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("--device is '", asked, "': must be auto, cpu or cuda:N"));
}

absl::StatusOr<std::string> ChooseDevice(const std::string& asked, const CudaMachine& machine) {
  const std::optional<int> index = IndexOf(asked);
  if (!index.has_value()) return "cpu";
  const auto refuse = [&](const std::string& why) {
    return absl::FailedPreconditionError(absl::StrCat("--device ", asked, ": ", why));
  };
  const std::string none = NoDevice(machine);
  if (!none.empty()) return refuse(absl::StrCat("no CUDA device: ", none));
  const int count = static_cast<int>(machine.devices.size());
  if (*index >= count) {
    return refuse(absl::StrCat("this machine has ", count, " CUDA device", count == 1 ? "" : "s",
                               ", counted from 0"));
  }
  return refuse(absl::StrCat(Describe(machine.devices[*index]),
                             ": is there, but attention on GPUs is not served yet"));
}

std::string ListDevices(int cpu_threads, const CudaMachine& machine) {
  std::string list =
      absl::StrCat("cpu     ", cpu_threads, cpu_threads == 1 ? " thread\n" : " threads\n");
  const std::string none = NoDevice(machine);
  if (!none.empty()) absl::StrAppend(&list, "no CUDA device: ", none, "\n");
  for (size_t index = 0; index < machine.devices.size(); ++index) {
    absl::StrAppendFormat(&list, "%-7s %s; not served yet\n", absl::StrCat("cuda:", index),
                          Describe(machine.devices[index]));
  }
  if (machine.built) {
    absl::StrAppend(&list, "built with CUDA ", Version(machine.runtime), " and NCCL ", machine.nccl,
                    "\n");
  }
  return list;
}

}  // namespace ringserve
