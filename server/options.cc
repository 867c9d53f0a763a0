#include "server/options.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "proto/flags.h"
#include "proto/metrics_port.h"
#include "proto/option_table.h"

namespace ringserve {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr int64_t kDayMs = 86'400'000;
constexpr int64_t kDaySeconds = 86'400;

void AddListener(OptionTable& table, ServerOptions& options) {
  table.Text("listen", "ADDRESS", options.listen, "HOST:PORT (port 0: any free one) or unix:PATH");
  table.Switch("insecure", options.insecure,
               "Listen beyond loopback without TLS: whoever can reach the address is served");
  AddTls(table, options.tls);
  AddHealthListen(table, options.health_listen);
  AddMetricsListen(table, options.metrics_listen);
}

void AddCluster(OptionTable& table, CoordinatorOptions& options) {
  table.Time<milliseconds>("heartbeat-interval-ms", 1, kDayMs, options.heartbeat_interval,
                           "How often a worker says that it lives");
  table.Time<milliseconds>("lost-after-ms", 1, kDayMs, options.lost_after,
                           "A worker that is silent for so long is lost, and its jobs fail");
  table.Time<milliseconds>("exchange-deadline-ms", 1, kDayMs, options.exchange_deadline,
                           "A running job without progress for so long is failed, and its epoch "
                           "ended");
  table.Whole("max-queued-jobs", 0, 1'000'000, options.max_queued_jobs,
              "Jobs that may wait for memory; more are refused with RESOURCE_EXHAUSTED");
}

void AddLimits(OptionTable& table, ServerOptions& options) {
  table.Time<seconds>("max-deadline-s", 1, 7 * kDaySeconds, options.attend.max_deadline,
                      "The longest that a call may take, whatever its own deadline");
  MinimumRate& rate = options.attend.minimum_rate;
  table.Number(
      "min-rate-bytes-per-second", /*zero=*/true, [&rate] { return rate.bytes_per_second; },
      [&rate](double value) { rate.bytes_per_second = value; },
      absl::StrCat("A client that moves less in ", rate.window.count() / 1'000,
                   " s that it is waited for is cut off (whole messages count); 0: "
                   "never"));
  table.Size("max-bias-bytes", 0, uint64_t{1} << 62, options.attend.max_bias_bytes,
             "The largest dense bias or boolean mask tensor that a request may bring");
  table.Time<seconds>("drain-s", 0, kDaySeconds, options.drain,
                      "On SIGTERM, the longest that jobs which run are waited for");
}

void AddPlanning(OptionTable& table, ServerOptions& options) {
  table.Choice<v1::Balancer>("default-balancer",
                             {{"auto", v1::BALANCER_AUTO},
                              {"contiguous", v1::BALANCER_CONTIGUOUS},
                              {"head-tail", v1::BALANCER_HEAD_TAIL},
                              {"per-document", v1::BALANCER_PER_DOCUMENT},
                              {"ptrr", v1::BALANCER_PTRR}},
                             options.attend.default_balancer,
                             "How sequences are cut where a request leaves it to us");
  table.Choice<v1::RotateMethod>("default-rotate",
                                 {{"auto", v1::ROTATE_METHOD_AUTO},
                                  {"all-to-all", v1::ROTATE_METHOD_ALL_TO_ALL},
                                  {"all-gather", v1::ROTATE_METHOD_ALL_GATHER},
                                  {"pass-q", v1::ROTATE_METHOD_PASS_Q}},
                                 options.attend.default_rotate,
                                 "How K and V meet the queries where a request leaves it to us");
  v1::Measurements& assumed = options.coordinator.measurements;
  table.Number(
      "pairs-per-second", false, [&] { return assumed.pairs_per_second(); },
      [&](double value) { assumed.set_pairs_per_second(value); },
      "What the planner assumes of a worker: visible pairs x heads x (D + Dv) / 256 that "
      "it does in a second");
  table.Number(
      "link-bytes-per-second", false, [&] { return assumed.link_bytes_per_second(); },
      [&](double value) { assumed.set_link_bytes_per_second(value); },
      "What the planner assumes of the link between two workers: bytes in a second");
  table.Number(
      "link-latency-seconds", true, [&] { return assumed.link_latency_seconds(); },
      [&](double value) { assumed.set_link_latency_seconds(value); },
      "What the planner assumes of the link between two workers: delay of a message");
  table.Number(
      "rank-overhead-seconds", true, [&] { return assumed.rank_overhead_seconds(); },
      [&](double value) { assumed.set_rank_overhead_seconds(value); },
      "What the planner assumes that one more worker in a job costs");
}

// What single options cannot say.
absl::Status Contradiction(const ServerOptions& options) {
  const CoordinatorOptions& coordinator = options.coordinator;
  if (coordinator.lost_after < 2 * coordinator.heartbeat_interval) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--lost-after-ms: is ", coordinator.lost_after.count(),
        ": at least twice --heartbeat-interval-ms (", coordinator.heartbeat_interval.count(), ")"));
  }
  if (options.tls.enabled() && options.tls.ca.empty()) {
    return absl::InvalidArgumentError(
        "--tls-ca: is missing: under TLS workers must present certificates, and someone must have "
        "signed them");
  }
  absl::Status status = CheckListenAddress(options.listen, options.tls, options.insecure);
  if (!status.ok()) return absl::InvalidArgumentError(absl::StrCat("--listen: ", status.message()));
  status = CheckPlaintextAddress("--health-listen", options.health_listen);
  return status.ok() ? CheckMetricsAddress("--metrics-listen", options.metrics_listen) : status;
}

}  // namespace

std::optional<int> ParseOptions(int argc, const char* const* argv, ServerOptions& options) {
  options.coordinator.version = RINGSERVE_VERSION;
  OptionTable table({.name = "ringserve-server",
                     .what = "The coordinator of ringserve: plans, admits and starts attention "
                             "jobs, and passes their bytes on to workers.",
                     .version = RINGSERVE_VERSION});
  AddListener(table, options);
  AddCluster(table, options.coordinator);
  AddLimits(table, options);
  AddPlanning(table, options);
  AddLog(table, options.log);
  AddDieWithParent(table, options.die_with_parent);
  return table.Parse(argc, argv, [&] { return Contradiction(options); });
}

}  // namespace ringserve
