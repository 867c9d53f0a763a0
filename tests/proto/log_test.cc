#include "proto/log.h"

#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <grpc/support/log.h>
#include <gtest/gtest.h>
#include <spdlog/spdlog.h>

#include <nlohmann/json.hpp>
#include "ringserve/v1/attention.pb.h"

namespace ringserve {
namespace {

using testing::MatchesRegex;

// What `write` makes the log write.
template <typename Write>
std::string Logged(const LogOptions& options, const Write& write) {
  testing::internal::CaptureStderr();
  StartLog(options);
  write();
  return testing::internal::GetCapturedStderr();
}

std::string LoggedAs(const std::string& format, const std::string& message) {
  return Logged({.format = format}, [&] { spdlog::info(message); });
}

nlohmann::json Json(const std::string& message) {
  const std::string line = LoggedAs("json", message);
  EXPECT_EQ(line.find('\n'), line.size() - 1) << line;
  return nlohmann::json::parse(line);  // throws where the line is not JSON, or not UTF-8
}

TEST(Log, TextIsTimeLevelProcessAndMessage) {
  EXPECT_THAT(LoggedAs("text", "job done request=\"x\" path=a\\b"),
              MatchesRegex("[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}[.][0-9]{3}Z "
                           "info  \\[[0-9]+\\] job done request=\"x\" path=a\\\\b\n"));
}

TEST(Log, JsonIsOneObjectPerLine) {
  const nlohmann::json line = Json("job done request=1");
  EXPECT_EQ(line.size(), 4u);
  EXPECT_THAT(line["time"].get<std::string>(), MatchesRegex("[0-9-]+T[0-9:.]+Z"));
  EXPECT_EQ(line["level"], "info");
  EXPECT_EQ(line["pid"], getpid());
  EXPECT_EQ(line["message"], "job done request=1");
}

TEST(Log, JsonKeepsEveryCharacter) {
  std::string ascii;
  for (char c = 1; c > 0; ++c) ascii += c;
  for (const std::string& message :
       {ascii, std::string("zero \0 inside", 13), std::string("\"quoted\" \\n is no line break\n"),
        std::string("caf\xC3\xA9 \xE2\x82\xAC \xF0\x9F\x98\x80 \xEF\xBF\xBF \xF4\x8F\xBF\xBF"),
        std::string()}) {
    EXPECT_EQ(Json(message)["message"].get<std::string>(), message);
  }
}

TEST(Log, JsonStaysJsonWhateverAStrangerSends) {
  const std::string kUnknown = "\xEF\xBF\xBD";
  const std::pair<std::string, int> cases[] = {
      {"\x80", 1},              // continues nothing
      {"\xC3", 1},              // cut off
      {"\xE2\x82", 2},          // cut off
      {"\xF0\x9F\x98", 3},      // cut off
      {"\xC0\xAF", 2},          // a slash in two bytes
      {"\xE0\x80\xAF", 3},      // in three
      {"\xF0\x80\x80\xAF", 4},  // in four
      {"\xED\xA0\x80", 3},      // half of a surrogate pair
      {"\xF4\x90\x80\x80", 4},  // past the last character
      {"\xFF\xFE", 2},
  };
  for (const auto& [bytes, replaced] : cases) {
    std::string expected = "<";
    for (int i = 0; i < replaced; ++i) expected += kUnknown;
    EXPECT_EQ(Json("<" + bytes + ">")["message"].get<std::string>(), expected + ">");
  }
}

TEST(Log, AStrangersWordsCannotForgeALine) {
  EXPECT_THAT(
      LoggedAs("text", "reason=bye\n2026-01-01T00:00:00.000Z info all is well\r\x1b[2J\x80"),
      testing::EndsWith("] reason=bye\\n2026-01-01T00:00:00.000Z info all is "
                        "well\\x0d\\x1b[2J\\x80\n"));
}

TEST(Log, WritesNothingBelowItsLevel) {
  const auto all = [] {
    spdlog::trace("t");
    spdlog::debug("d");
    spdlog::info("i");
    spdlog::warn("w");
    spdlog::error("e");
  };
  for (const auto& [level, lines] :
       {std::pair{"trace", 5}, std::pair{"debug", 4}, std::pair{"info", 3}, std::pair{"warn", 2},
        std::pair{"error", 1}, std::pair{"off", 0}}) {
    const std::string written = Logged({.level = level}, all);
    EXPECT_EQ(std::count(written.begin(), written.end(), '\n'), lines) << level;
  }
}

TEST(Log, LibrariesLogThroughIt) {
  gpr_log_verbosity_init();  // as grpc_init() does
  const std::string written = Logged({.format = "json"}, [] {
    gpr_log(GPR_ERROR, "handshake \"failed\"");
    gpr_log(GPR_INFO, "chatter");
    EXPECT_FALSE(v1::AttendHeader().ParseFromString("\x1a\x01\xFF"));
  });
  std::istringstream lines(written);
  std::vector<nlohmann::json> events;
  for (std::string line; std::getline(lines, line);) events.push_back(nlohmann::json::parse(line));
  ASSERT_EQ(events.size(), 2u);
  EXPECT_EQ(events[0]["message"], "grpc handshake \"failed\"");
  EXPECT_EQ(events[0]["level"], "warning");
  EXPECT_THAT(events[1]["message"].get<std::string>(),
              testing::StartsWith("protobuf String field 'ringserve.v1.AttendHeader.request_id'"));
}

}  // namespace
}  // namespace ringserve
