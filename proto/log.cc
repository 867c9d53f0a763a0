#include "proto/log.h"

#include <algorithm>
#include <memory>
#include <string>
#include <utility>

#include <google/protobuf/stubs/logging.h>
#include <grpc/support/log.h>
#include <spdlog/pattern_formatter.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace ringserve {
namespace {

// Bytes of the UTF-8 character that `text` begins with; 0: it begins with none (RFC 3629).
size_t Utf8Length(absl::string_view text) {
  const auto at = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const auto continues = [&](size_t i) { return i < text.size() && (at(i) & 0xC0) == 0x80; };
  const unsigned char first = at(0);
  if (first < 0x80) return 1;
  if (first >= 0xC2 && first < 0xE0) return continues(1) ? 2 : 0;
  if (first < 0xE0 || first >= 0xF5 || !continues(1) || !continues(2)) return 0;
  const unsigned char second = at(1);
  if (first < 0xF0) {
    const bool overlong = first == 0xE0 && second < 0xA0;
    const bool surrogate = first == 0xED && second >= 0xA0;
    return overlong || surrogate ? 0 : 3;
  }
  const bool overlong = first == 0xF0 && second < 0x90;
  const bool too_large = first == 0xF4 && second >= 0x90;
  return overlong || too_large || !continues(3) ? 0 : 4;
}

// The message on one line, whatever it quotes: as the inside of a JSON string, or as text in which
// control characters, and what is not UTF-8, are escaped.
class OneLine : public spdlog::custom_flag_formatter {
 public:
  explicit OneLine(bool json) : json_(json) {}

  void format(const spdlog::details::log_msg& line, const std::tm&,
              spdlog::memory_buf_t& out) override {
    absl::string_view rest(line.payload.data(), line.payload.size());
    std::string escaped;
    while (!rest.empty()) {
      const size_t length = Utf8Length(rest);
      Append(rest.substr(0, std::max<size_t>(length, 1)), length != 0, escaped);
      rest.remove_prefix(std::max<size_t>(length, 1));
    }
    out.append(escaped.data(), escaped.data() + escaped.size());
  }

  std::unique_ptr<custom_flag_formatter> clone() const override {
    return std::make_unique<OneLine>(json_);
  }

 private:
  void Append(absl::string_view character, bool utf8, std::string& to) const {
    const auto byte = static_cast<unsigned char>(character[0]);
    if (character == "\n") {
      to += "\\n";
    } else if (json_ && (byte == '"' || byte == '\\')) {
      absl::StrAppend(&to, "\\", character);
    } else if (json_ && !utf8) {
      to += "\\ufffd";
    } else if (!utf8 || byte < 0x20 || byte == 0x7F) {
      absl::StrAppend(&to, json_ ? "\\u00" : "\\x", absl::Hex(byte, absl::kZeroPad2));
    } else {
      absl::StrAppend(&to, character);
    }
  }

  const bool json_;
};

// The logger of gRPC and protobuf. Their threads may log while the process exits, when spdlog's own
// registry is gone: this one is never destroyed.
spdlog::logger& LibraryLog(std::shared_ptr<spdlog::logger> replacement = nullptr) {
  static auto& log = *new std::shared_ptr<spdlog::logger>;
  if (replacement != nullptr) log = std::move(replacement);
  return *log;
}

void LogOfGrpc(gpr_log_func_args* line) {
  const bool error = line->severity == GPR_LOG_SEVERITY_ERROR;
  LibraryLog().log(error ? spdlog::level::warn : spdlog::level::debug, "grpc {}", line->message);
}

void LogOfProtobuf(google::protobuf::LogLevel level, const char*, int, const std::string& message) {
  const bool error = level >= google::protobuf::LOGLEVEL_ERROR;
  LibraryLog().log(error ? spdlog::level::warn : spdlog::level::debug, "protobuf {}", message);
}

}  // namespace

void StartLog(const LogOptions& options) {
  auto log = std::make_shared<spdlog::logger>("ringserve",
                                              std::make_shared<spdlog::sinks::stderr_sink_mt>());
  const bool json = options.format == "json";
  auto formatter = std::make_unique<spdlog::pattern_formatter>(spdlog::pattern_time_type::utc);
  formatter->add_flag<OneLine>('*', json).set_pattern(
      json ? R"({"time":"%Y-%m-%dT%H:%M:%S.%eZ","level":"%l","pid":%P,"message":"%*"})"
           : "%Y-%m-%dT%H:%M:%S.%eZ %-5l [%P] %*");
  log->set_formatter(std::move(formatter));
  log->set_level(spdlog::level::from_str(options.level));
  log->flush_on(spdlog::level::trace);
  LibraryLog(log);
  gpr_set_log_function(LogOfGrpc);
  google::protobuf::SetLogHandler(LogOfProtobuf);
  spdlog::set_default_logger(std::move(log));
}

}  // namespace ringserve
