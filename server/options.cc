#include "server/options.h"

#include <cmath>
#include <cstdio>
#include <limits>
#include <map>

#include <CLI/CLI.hpp>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "proto/flags.h"
#include "server/plan/names.h"

namespace ringserve {
namespace {

using std::chrono::milliseconds;

constexpr int64_t kDayMs = 86'400'000;
constexpr int64_t kWeekSeconds = 604'800;

std::string Variable(const std::string& flag) {
  return absl::StrCat("RINGSERVE_", absl::AsciiStrToUpper(absl::StrReplaceAll(
                                        absl::string_view(flag).substr(2), {{"-", "_"}})));
}

// Whole numbers of [least, most].
void AddWhole(CLI::App& app, const std::string& flag, int64_t least, int64_t most, int64_t shown,
              const std::string& what, const std::function<void(int64_t)>& set) {
  app.add_option_function<std::string>(
         flag,
         [=](const std::string& text) {
           int64_t value = 0;
           if (!absl::SimpleAtoi(text, &value) || value < least || value > most) {
             throw CLI::ValidationError(
                 flag, absl::StrCat("is '", text, "': a whole number from ", least, " to ", most));
           }
           set(value);
         },
         what)
      ->envname(Variable(flag))
      ->type_name("N")
      ->default_str(absl::StrCat(shown));
}

void AddMilliseconds(CLI::App& app, const std::string& flag, milliseconds& time,
                     const std::string& what) {
  AddWhole(app, flag, 1, kDayMs, time.count(), what,
           [&time](int64_t value) { time = milliseconds(value); });
}

void AddSeconds(CLI::App& app, const std::string& flag, int64_t least, int64_t most,
                milliseconds& time, const std::string& what) {
  AddWhole(app, flag, least, most, time.count() / 1'000, what,
           [&time](int64_t value) { time = milliseconds(value * 1'000); });
}

// Finite numbers, above 0 or from 0 on.
void AddNumber(CLI::App& app, const std::string& flag, bool zero, double shown,
               const std::string& what, const std::function<void(double)>& set) {
  app.add_option_function<std::string>(
         flag,
         [=](const std::string& text) {
           double value = 0;
           if (!absl::SimpleAtod(text, &value) || !std::isfinite(value) || value < 0 ||
               (value == 0 && !zero)) {
             throw CLI::ValidationError(flag, absl::StrCat("is '", text, "': a finite number ",
                                                           zero ? "of at least 0" : "above 0"));
           }
           set(value);
         },
         what)
      ->envname(Variable(flag))
      ->type_name("X")
      ->default_str(absl::StrCat(shown));
}

template <typename Enum>
void AddChoice(CLI::App& app, const std::string& flag, Enum& chosen,
               const std::map<std::string, Enum>& choices, const std::string& shown,
               const std::string& what) {
  std::string names;
  for (const auto& [name, value] : choices) {
    absl::StrAppend(&names, names.empty() ? "" : ", ", name);
  }
  app.add_option_function<std::string>(
         flag,
         [=, &chosen](const std::string& text) {
           const auto choice = choices.find(text);
           if (choice == choices.end()) {
             throw CLI::ValidationError(flag, absl::StrCat("is '", text, "': one of ", names));
           }
           chosen = choice->second;
         },
         what)
      ->envname(Variable(flag))
      ->type_name("NAME")
      ->default_str(shown);
}

void AddListener(CLI::App& app, ServerOptions& options) {
  app.add_option("--listen", options.listen, "HOST:PORT (port 0: any free one) or unix:PATH")
      ->envname("RINGSERVE_LISTEN")
      ->type_name("ADDRESS")
      ->capture_default_str();
  app.add_flag("--insecure", options.insecure,
               "Listen beyond loopback without TLS: whoever can reach the address is served")
      ->envname("RINGSERVE_INSECURE");
  AddTlsFlags(app, options.tls);
}

void AddCluster(CLI::App& app, CoordinatorOptions& options) {
  AddMilliseconds(app, "--heartbeat-interval-ms", options.heartbeat_interval,
                  "How often a worker says that it lives");
  AddMilliseconds(app, "--lost-after-ms", options.lost_after,
                  "A worker that is silent for so long is lost, and its jobs fail");
  AddMilliseconds(app, "--exchange-deadline-ms", options.exchange_deadline,
                  "A running job without progress for so long is failed, and its epoch ended");
  AddWhole(app, "--max-queued-jobs", 0, 1'000'000, options.max_queued_jobs,
           "Jobs that may wait for memory; more are refused with RESOURCE_EXHAUSTED",
           [&options](int64_t value) { options.max_queued_jobs = value; });
}

void AddLimits(CLI::App& app, ServerOptions& options) {
  AddSeconds(app, "--max-deadline-s", 1, kWeekSeconds, options.attend.max_deadline,
             "The longest that a call may take, whatever its own deadline");
  MinimumRate& rate = options.attend.minimum_rate;
  AddNumber(app, "--min-rate-bytes-per-second", /*zero=*/true, rate.bytes_per_second,
            absl::StrCat("A client that moves less in ", rate.window.count() / 1'000,
                         " s that it is waited for is cut off (whole messages count); 0: never"),
            [&rate](double value) { rate.bytes_per_second = value; });
  AddSeconds(app, "--drain-s", 0, 86'400, options.drain,
             "On SIGTERM, the longest that jobs which run are waited for");
}

void AddPlanning(CLI::App& app, ServerOptions& options) {
  AddChoice<v1::Balancer>(app, "--default-balancer", options.attend.default_balancer,
                          {{"auto", v1::BALANCER_AUTO},
                           {"contiguous", v1::BALANCER_CONTIGUOUS},
                           {"head-tail", v1::BALANCER_HEAD_TAIL},
                           {"per-document", v1::BALANCER_PER_DOCUMENT},
                           {"ptrr", v1::BALANCER_PTRR}},
                          BalancerName(options.attend.default_balancer),
                          "How sequences are cut where a request leaves it to us: auto, "
                          "contiguous, head-tail, per-document or ptrr");
  AddChoice<v1::RotateMethod>(app, "--default-rotate", options.attend.default_rotate,
                              {{"auto", v1::ROTATE_METHOD_AUTO},
                               {"all-to-all", v1::ROTATE_METHOD_ALL_TO_ALL},
                               {"all-gather", v1::ROTATE_METHOD_ALL_GATHER}},
                              RotateName(options.attend.default_rotate),
                              "How K and V meet the queries where a request leaves it to us: "
                              "auto, all-to-all or all-gather");
  v1::Measurements& assumed = options.coordinator.measurements;
  AddNumber(app, "--pairs-per-second", false, assumed.pairs_per_second(),
            "What the planner assumes of a worker: visible pairs x heads x (D + Dv) / 256 that it "
            "does in a second",
            [&assumed](double value) { assumed.set_pairs_per_second(value); });
  AddNumber(app, "--link-bytes-per-second", false, assumed.link_bytes_per_second(),
            "What the planner assumes of the link between two workers: bytes in a second",
            [&assumed](double value) { assumed.set_link_bytes_per_second(value); });
  AddNumber(app, "--link-latency-seconds", true, assumed.link_latency_seconds(),
            "What the planner assumes of the link between two workers: delay of a message",
            [&assumed](double value) { assumed.set_link_latency_seconds(value); });
  AddNumber(app, "--rank-overhead-seconds", true, assumed.rank_overhead_seconds(),
            "What the planner assumes that one more worker in a job costs",
            [&assumed](double value) { assumed.set_rank_overhead_seconds(value); });
}

// What single flags cannot say.
std::string Contradiction(const ServerOptions& options) {
  const CoordinatorOptions& coordinator = options.coordinator;
  if (coordinator.lost_after < 2 * coordinator.heartbeat_interval) {
    return absl::StrCat("--lost-after-ms: is ", coordinator.lost_after.count(),
                        ": at least twice --heartbeat-interval-ms (",
                        coordinator.heartbeat_interval.count(), ")");
  }
  if (options.tls.enabled() && options.tls.ca.empty()) {
    return "--tls-ca: is missing: under TLS workers must present certificates, and someone must "
           "have signed them";
  }
  const absl::Status status = CheckListenAddress(options.listen, options.tls, options.insecure);
  return status.ok() ? "" : absl::StrCat("--listen: ", status.message());
}

}  // namespace

std::optional<int> ParseOptions(int argc, const char* const* argv, ServerOptions& options) {
  CLI::App app(
      "The coordinator of ringserve: plans, admits and starts attention jobs, and passes "
      "their bytes on to workers.",
      "ringserve-server");
  app.footer("Every option --NAME may be given as RINGSERVE_NAME in the environment instead.");
  AddListener(app, options);
  AddCluster(app, options.coordinator);
  AddLimits(app, options);
  AddPlanning(app, options);
  AddLogFlags(app, options.log);
  app.add_flag("--die-with-parent", options.die_with_parent,
               "End as soon as the thread that started this process ends")
      ->envname("RINGSERVE_DIE_WITH_PARENT");
  app.set_version_flag("--version", "ringserve-server " RINGSERVE_VERSION);
  const auto refuse = [](const std::string& why) {
    std::fprintf(stderr, "ringserve-server: %s\n", why.c_str());
    return kExitBadOption;
  };
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& success) {
    return app.exit(success);
  } catch (const CLI::ParseError& error) {
    return refuse(error.what());
  }
  const std::string contradiction = Contradiction(options);
  if (!contradiction.empty()) return refuse(contradiction);
  options.coordinator.version = RINGSERVE_VERSION;
  return std::nullopt;
}

}  // namespace ringserve
