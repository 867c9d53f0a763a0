#include "server/hello.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "proto/protocol.h"

namespace ringserve {
namespace {

constexpr size_t kLongestHelloText = 256;

absl::Status Wrong(absl::string_view field, absl::string_view value, absl::string_view rule) {
  return absl::InvalidArgumentError(absl::StrCat("hello.", field, " is ", value, ": ", rule));
}

bool IsAddress(const std::string& address) {
  for (const char* scheme : {"unix:", "unix-abstract:"}) {
    if (absl::StartsWith(address, scheme)) return address.size() > std::strlen(scheme);
  }
  const size_t colon = address.rfind(':');
  int port = 0;
  return colon != std::string::npos && colon > 0 &&
         absl::SimpleAtoi(address.substr(colon + 1), &port) && port >= 1 && port <= 65535;
}

bool IsPrintable(const std::string& text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return c >= 0x20 && c < 0x7f; });
}

bool IsDevice(absl::string_view device) {
  if (device == "cpu") return true;
  return absl::ConsumePrefix(&device, "cuda:") && !device.empty() &&
         device.find_first_not_of("0123456789") == absl::string_view::npos;
}

}  // namespace

std::string DeviceKind(const std::string& device) { return device.substr(0, device.find(':')); }

absl::Status CheckHello(const v1::Hello& hello) {
  if (hello.protocol_version() != kProtocolVersion) {
    return absl::FailedPreconditionError(
        absl::StrCat("hello.protocol_version is ", hello.protocol_version(),
                     ": this coordinator speaks version ", kProtocolVersion));
  }
  const std::pair<const char*, const std::string*> texts[] = {{"address", &hello.address()},
                                                              {"device", &hello.device()},
                                                              {"version", &hello.version()},
                                                              {"libtorch", &hello.libtorch()},
                                                              {"device_name", &hello.device_name()},
                                                              {"driver", &hello.driver()},
                                                              {"cuda", &hello.cuda()},
                                                              {"nccl", &hello.nccl()}};
  for (const auto& [field, text] : texts) {
    if (text->size() > kLongestHelloText) {
      return Wrong(field, absl::StrCat(text->size(), " bytes long"),
                   absl::StrCat("at most ", kLongestHelloText, " are allowed"));
    }
    if (!IsPrintable(*text)) return Wrong(field, "not printable", "must be printable ASCII");
  }
  if (!IsAddress(hello.address())) {
    return Wrong("address", absl::StrCat("'", hello.address(), "'"),
                 "must be HOST:PORT (port 1 to 65535), unix:PATH or unix-abstract:NAME");
  }
  if (!IsDevice(hello.device())) {
    return Wrong("device", absl::StrCat("'", hello.device(), "'"), "must be cpu or cuda:N");
  }
  if (hello.threads() < 1) return Wrong("threads", absl::StrCat(hello.threads()), "must be >= 1");
  if (hello.memory_bytes() == 0) return Wrong("memory_bytes", "0", "must be > 0");
  return absl::OkStatus();
}

}  // namespace ringserve
