#include "worker/device.h"

#include <cstddef>
#include <optional>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"

namespace ringserve {
namespace {

// The least compute capability that CUDA 13 and LibTorch serve.
constexpr std::pair<int, int> kLeast = {7, 5};

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
  if (!device.error.empty()) return "a GPU";
  return absl::StrFormat("%s, compute capability %d.%d, %.1f GiB", device.name, device.major,
                         device.minor, static_cast<double>(device.memory_bytes) / (1 << 30));
}

// Why attention cannot be computed on it; empty: it can.
std::string Shortcoming(const CudaDevice& device) {
  if (!device.error.empty()) return absl::StrCat("CUDA says: ", device.error);
  if (std::pair(device.major, device.minor) >= kLeast) return "";
  return absl::StrCat("too old: compute capability ", kLeast.first, ".", kLeast.second,
                      " or newer is served");
}

}  // namespace

std::optional<int> CudaIndex(const std::string& device) {
  int index = 0;
  absl::string_view number = device;
  if (!absl::ConsumePrefix(&number, "cuda:") || number.empty() || number.size() > 4 ||
      number.find_first_not_of("0123456789") != absl::string_view::npos ||
      !absl::SimpleAtoi(number, &index)) {
    return std::nullopt;
  }
  return index;
}

absl::Status CheckDevice(const std::string& asked) {
  if (asked == "auto" || asked == "cpu" || CudaIndex(asked).has_value()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("--device is '", asked, "': must be auto, cpu or cuda:N"));
}

absl::StatusOr<std::string> ChooseDevice(const std::string& asked, const CudaMachine& machine) {
  if (asked == "cpu") return "cpu";
  if (asked == "auto") {
    const absl::StatusOr<std::string> gpu = ChooseDevice("cuda:0", machine);
    return gpu.ok() ? *gpu : "cpu";
  }
  const int index = *CudaIndex(asked);
  const auto refuse = [&](const std::string& why) {
    return absl::FailedPreconditionError(absl::StrCat("--device ", asked, ": ", why));
  };
  const std::string none = NoDevice(machine);
  if (!none.empty()) return refuse(absl::StrCat("no CUDA device: ", none));
  const int count = static_cast<int>(machine.devices.size());
  if (index >= count) {
    return refuse(absl::StrCat("this machine has ", count, " CUDA device", count == 1 ? "" : "s",
                               ", counted from 0"));
  }
  const std::string shortcoming = Shortcoming(machine.devices[index]);
  if (!shortcoming.empty()) {
    return refuse(absl::StrCat(Describe(machine.devices[index]), ": ", shortcoming));
  }
  return absl::StrCat("cuda:", index);
}

GpuFacts FactsOf(const std::string& device, const CudaMachine& machine) {
  const std::optional<int> index = CudaIndex(device);
  if (!index.has_value()) return {};
  return {.name = machine.devices[*index].name,
          .driver = machine.release.empty() ? absl::StrCat("CUDA ", Version(machine.driver))
                                            : machine.release,
          .cuda = Version(machine.runtime),
          .nccl = machine.nccl};
}

std::string ListDevices(int cpu_threads, const CudaMachine& machine) {
  std::string list =
      absl::StrCat("cpu     ", cpu_threads, cpu_threads == 1 ? " thread\n" : " threads\n");
  const std::string none = NoDevice(machine);
  if (!none.empty()) absl::StrAppend(&list, "no CUDA device: ", none, "\n");
  for (size_t index = 0; index < machine.devices.size(); ++index) {
    const std::string shortcoming = Shortcoming(machine.devices[index]);
    absl::StrAppendFormat(&list, "%-7s %s%s%s\n", absl::StrCat("cuda:", index),
                          Describe(machine.devices[index]), shortcoming.empty() ? "" : "; ",
                          shortcoming);
  }
  if (machine.built) {
    absl::StrAppend(&list, "built with CUDA ", Version(machine.runtime), " and NCCL ", machine.nccl,
                    "\n");
  }
  return list;
}

}  // namespace ringserve
