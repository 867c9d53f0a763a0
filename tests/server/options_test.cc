#include "server/options.h"

#include <cstdlib>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace ringserve {
namespace {

using std::chrono::milliseconds;
using ::testing::HasSubstr;

struct Parsed {
  std::optional<int> exit;
  ServerOptions options;
  std::string output;  // of both streams
};

Parsed Parse(std::vector<const char*> arguments) {
  arguments.insert(arguments.begin(), "ringserve-server");
  Parsed parsed;
  ::testing::internal::CaptureStderr();
  ::testing::internal::CaptureStdout();
  parsed.exit = ParseOptions(static_cast<int>(arguments.size()), arguments.data(), parsed.options);
  parsed.output = ::testing::internal::GetCapturedStdout();
  parsed.output += ::testing::internal::GetCapturedStderr();
  return parsed;
}

TEST(ServerOptions, NothingGivenIsALocalServerWithTheDefaultsThatAreDocumented) {
  const Parsed parsed = Parse({});
  ASSERT_FALSE(parsed.exit.has_value()) << parsed.output;
  const ServerOptions& options = parsed.options;
  EXPECT_EQ(options.listen, "127.0.0.1:7070");
  EXPECT_EQ(options.coordinator.heartbeat_interval, milliseconds(200));
  EXPECT_EQ(options.coordinator.lost_after, milliseconds(1'000));
  EXPECT_EQ(options.attend.max_deadline, std::chrono::hours(1));
  EXPECT_EQ(options.attend.header_patience, std::chrono::seconds(10));
  EXPECT_DOUBLE_EQ(options.attend.minimum_rate.bytes_per_second, 1024 * 1024 / 10.0);
  EXPECT_EQ(options.coordinator.version, RINGSERVE_VERSION);
}

TEST(ServerOptions, EveryFlagReachesItsOption) {
  const Parsed parsed = Parse({"--listen",
                               "127.0.0.1:0",
                               "--heartbeat-interval-ms",
                               "50",
                               "--lost-after-ms",
                               "250",
                               "--exchange-deadline-ms",
                               "7000",
                               "--max-queued-jobs",
                               "3",
                               "--max-deadline-s",
                               "60",
                               "--min-rate-bytes-per-second",
                               "0.5",
                               "--drain-s",
                               "0",
                               "--default-balancer",
                               "contiguous",
                               "--default-rotate",
                               "pass-q",
                               "--pairs-per-second",
                               "1e9",
                               "--link-bytes-per-second",
                               "2e9",
                               "--link-latency-seconds",
                               "0",
                               "--rank-overhead-seconds",
                               "0.25",
                               "--log-format",
                               "json",
                               "--log-level",
                               "debug",
                               "--die-with-parent"});
  ASSERT_FALSE(parsed.exit.has_value()) << parsed.output;
  const ServerOptions& options = parsed.options;
  EXPECT_EQ(options.listen, "127.0.0.1:0");
  EXPECT_EQ(options.coordinator.heartbeat_interval, milliseconds(50));
  EXPECT_EQ(options.coordinator.lost_after, milliseconds(250));
  EXPECT_EQ(options.coordinator.exchange_deadline, milliseconds(7'000));
  EXPECT_EQ(options.coordinator.max_queued_jobs, 3);
  EXPECT_EQ(options.attend.max_deadline, milliseconds(60'000));
  EXPECT_EQ(options.attend.minimum_rate.bytes_per_second, 0.5);
  EXPECT_EQ(options.drain, milliseconds(0));
  EXPECT_EQ(options.attend.default_balancer, v1::BALANCER_CONTIGUOUS);
  EXPECT_EQ(options.attend.default_rotate, v1::ROTATE_METHOD_PASS_Q);
  const v1::Measurements& measurements = options.coordinator.measurements;
  EXPECT_EQ(measurements.pairs_per_second(), 1e9);
  EXPECT_EQ(measurements.link_bytes_per_second(), 2e9);
  EXPECT_EQ(measurements.link_latency_seconds(), 0);
  EXPECT_EQ(measurements.rank_overhead_seconds(), 0.25);
  EXPECT_EQ(options.log.format, "json");
  EXPECT_EQ(options.log.level, "debug");
  EXPECT_TRUE(options.die_with_parent);
}

TEST(ServerOptions, TheEnvironmentServesWhereNoFlagIsGiven) {
  setenv("RINGSERVE_MAX_QUEUED_JOBS", "12", 1);
  setenv("RINGSERVE_DEFAULT_BALANCER", "head-tail", 1);
  const Parsed by_environment = Parse({});
  const Parsed by_flag = Parse({"--max-queued-jobs", "5"});
  setenv("RINGSERVE_MAX_QUEUED_JOBS", "many", 1);
  const Parsed wrong = Parse({});
  unsetenv("RINGSERVE_MAX_QUEUED_JOBS");
  unsetenv("RINGSERVE_DEFAULT_BALANCER");
  EXPECT_EQ(by_environment.options.coordinator.max_queued_jobs, 12);
  EXPECT_EQ(by_environment.options.attend.default_balancer, v1::BALANCER_HEAD_TAIL);
  EXPECT_EQ(by_flag.options.coordinator.max_queued_jobs, 5);
  EXPECT_EQ(wrong.exit, kExitBadOption);
  EXPECT_THAT(wrong.output, HasSubstr("many"));
}

TEST(ServerOptions, ABadOptionIsOneLineThatNamesFlagValueAndLimit) {
  const struct {
    std::vector<const char*> arguments;
    std::vector<std::string> words;
  } kCases[] = {
      {{"--lost-after-ms", "0"}, {"--lost-after-ms", "'0'", "from 1 to"}},
      {{"--lost-after-ms", "300"}, {"--lost-after-ms", "300", "--heartbeat-interval-ms (200)"}},
      {{"--heartbeat-interval-ms", "soon"}, {"--heartbeat-interval-ms", "'soon'", "whole number"}},
      {{"--exchange-deadline-ms", "99999999999999999999"},
       {"--exchange-deadline-ms", "to 86400000"}},
      {{"--max-queued-jobs", "-1"}, {"--max-queued-jobs", "'-1'", "from 0"}},
      {{"--max-deadline-s", "1.5"}, {"--max-deadline-s", "'1.5'", "whole number"}},
      {{"--drain-s", ""}, {"--drain-s"}},
      {{"--min-rate-bytes-per-second", "nan"}, {"--min-rate-bytes-per-second", "'nan'", "finite"}},
      {{"--pairs-per-second", "0"}, {"--pairs-per-second", "'0'", "above 0"}},
      {{"--link-latency-seconds", "-1"}, {"--link-latency-seconds", "'-1'", "at least 0"}},
      {{"--default-balancer", "zigzag"},
       {"--default-balancer", "'zigzag'", "contiguous, head-tail, per-document, ptrr"}},
      {{"--default-rotate", "left"},
       {"--default-rotate", "'left'", "all-gather, all-to-all, auto, pass-q"}},
      {{"--log-level", "loud"}, {"--log-level", "loud"}},
      {{"--listen", "0.0.0.0:7070"}, {"--listen", "0.0.0.0:7070", "--insecure"}},
      {{"--listen", "127.0.0.1"}, {"--listen", "127.0.0.1", "HOST:PORT"}},
      {{"--listen", "127.0.0.1:70000"}, {"--listen", "70000", "65535"}},
      {{"--tls-cert", "c.pem", "--tls-key", "k.pem"}, {"--tls-ca", "missing"}},
      {{"--frobnicate"}, {"--frobnicate"}},
      {{"stray"}, {"stray"}},
  };
  for (const auto& [arguments, words] : kCases) {
    const Parsed parsed = Parse(arguments);
    EXPECT_EQ(parsed.exit, kExitBadOption) << arguments[0];
    EXPECT_EQ(std::count(parsed.output.begin(), parsed.output.end(), '\n'), 1) << parsed.output;
    for (const std::string& word : words) EXPECT_THAT(parsed.output, HasSubstr(word));
  }
}

TEST(ServerOptions, AListenerBeyondLoopbackNeedsAWord) {
  EXPECT_FALSE(Parse({"--listen", "0.0.0.0:7070", "--insecure"}).exit.has_value());
  EXPECT_FALSE(Parse({"--listen", "unix:/tmp/somewhere"}).exit.has_value());
}

TEST(ServerOptions, HelpAndVersionEndWell) {
  const Parsed help = Parse({"--help"});
  EXPECT_EQ(help.exit, 0);
  EXPECT_THAT(help.output, HasSubstr("--exchange-deadline-ms"));
  EXPECT_THAT(help.output, HasSubstr("RINGSERVE_EXCHANGE_DEADLINE_MS"));
  const Parsed version = Parse({"--version"});
  EXPECT_EQ(version.exit, 0);
  EXPECT_THAT(version.output, HasSubstr(RINGSERVE_VERSION));
}

}  // namespace
}  // namespace ringserve
