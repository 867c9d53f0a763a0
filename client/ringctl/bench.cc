#include <signal.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/ringctl/command.h"
#include "client/ringctl/dims.h"
#include "client/ringctl/format.h"
#include "client/ringctl/load_case.h"
#include "client/ringctl/load_run.h"
#include "client/ringctl/names.h"
#include "client/ringctl/request_options.h"
#include "client/ringctl/seconds.h"
#include "proto/machine.h"

namespace ringserve {
namespace {

using nlohmann::ordered_json;
using std::chrono::milliseconds;

constexpr double kDefaultSeconds = 10;
constexpr int kMixedCases = 24;
constexpr double kPercentiles[] = {50, 90, 99};

struct BenchOptions {
  Dims dims;
  RequestOptions request;
  std::string layout = "bhsd";
  int concurrency = 2;
  std::optional<double> duration_seconds;
  std::optional<int64_t> requests;
  double deadline_seconds = 60;
  int retries = 4;
  double wait_seconds = 0;
  uint64_t seed = 0;
  bool verify = false;
  bool json = false;
  std::string needs_dims;  // a flag that was given and says nothing without dims
};

std::atomic<bool> interrupted{false};

// One header where dims are given, else many kinds. `extras`: of the one header.
absl::StatusOr<std::vector<v1::AttendHeader>> Headers(const BenchOptions& options, int workers_now,
                                                      ExtrasFiles& files, AttendInputs& extras) {
  v1::AttendHeader asked;
  if (options.dims.any()) {
    absl::StatusOr<v1::AttentionSpec> spec =
        SpecOf(options.dims, *TensorLayoutNamed(options.layout));
    if (!spec.ok()) return spec.status();
    *asked.mutable_spec() = *std::move(spec);
  } else if (!options.needs_dims.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(options.needs_dims,
                     " is given without --q-heads, --q-len and --head-dim: requests of many kinds "
                     "have their own"));
  }
  const absl::Status status =
      ApplyRequestOptions(options.request, *asked.mutable_spec(), *asked.mutable_options());
  if (!status.ok()) return status;
  asked.mutable_options()->set_return_lse(true);
  if (options.dims.any()) {
    absl::StatusOr<ExtrasFiles> opened =
        OpenExtras(options.request.extras, *asked.mutable_spec(), extras);
    if (!opened.ok()) return opened.status();
    files = *std::move(opened);
    return std::vector<v1::AttendHeader>{asked};
  }

  const int workers = options.request.workers > 0 ? options.request.workers : workers_now;
  std::vector<v1::AttendHeader> headers = MixedHeaders(kMixedCases, workers, options.seed);
  for (v1::AttendHeader& header : headers) {
    header.mutable_options()->set_balancer(asked.options().balancer());
    header.mutable_options()->set_rotate(asked.options().rotate());
    if (options.request.workers > 0) header.mutable_options()->set_workers(workers);
  }
  return headers;
}

absl::StatusOr<std::vector<LoadCase>> Cases(const BenchOptions& options,
                                            const std::vector<v1::AttendHeader>& headers,
                                            const AttendInputs& extras) {
  const absl::Status fits = CheckMemory(headers, options.concurrency, AvailableMemoryBytes());
  if (!fits.ok()) return fits;
  std::vector<LoadCase> cases;
  cases.reserve(headers.size());
  for (size_t i = 0; i < headers.size(); ++i) {
    absl::StatusOr<LoadCase> load = MakeLoadCase(headers[i], options.seed + i, extras);
    if (!load.ok()) return load.status();
    cases.push_back(*std::move(load));
  }
  if (!options.verify) return cases;
  std::atomic<size_t> next{0};
  const auto work = [&] {
    for (size_t i = next++; i < cases.size(); i = next++) AddRightRows(cases[i], options.seed + i);
  };
  std::vector<std::thread> others;
  const int threads = AvailableThreads();
  for (int i = 1; i < threads; ++i) others.emplace_back(work);
  work();
  for (std::thread& thread : others) thread.join();
  for (const LoadCase& load : cases) {
    if (load.comparable()) continue;
    return absl::InvalidArgumentError(
        "--verify could compare nothing: with this --scale and type, the right answer of a request "
        "is finite in no row");
  }
  return cases;
}

std::string CountsText(const LoadStatistics& statistics) {
  std::string text = absl::StrCat("ok ", statistics.ok, ", retried ", statistics.retried,
                                  ", failed ", statistics.failed, ", wrong ", statistics.wrong);
  const char* separator = " (";
  for (const auto& [code, count] : statistics.failures) {
    absl::StrAppend(&text, separator, absl::StatusCodeToString(code), " ", count);
    separator = ", ";
  }
  return statistics.failures.empty() ? text : text + ")";
}

void PrintText(const LoadStatistics& statistics, double seconds, bool verified) {
  std::printf("%s%s\n", CountsText(statistics).c_str(),
              verified ? "" : "; answers not checked (--verify)");
  const std::vector<double>& sorted = statistics.seconds;
  if (!sorted.empty()) {
    std::printf("latency");
    for (const double percent : kPercentiles) {
      std::printf("  p%.0f %s", percent, SecondsText(Percentile(sorted, percent)).c_str());
    }
    std::printf("  max %s\n", SecondsText(sorted.back()).c_str());
  }
  std::printf(
      "%.1f answers/s, %s/s, in %s\n", static_cast<double>(sorted.size()) / seconds,
      BytesText(static_cast<uint64_t>(static_cast<double>(statistics.bytes) / seconds)).c_str(),
      SecondsText(seconds).c_str());
  if (!statistics.last_failure.ok()) {
    std::printf("last failure: %s\n", statistics.last_failure.ToString().c_str());
  }
  if (statistics.wrong > 0) std::printf("first WRONG answer: %s\n", statistics.first_wrong.c_str());
}

void PrintJson(const LoadStatistics& statistics, double seconds, bool verified) {
  ordered_json failures = ordered_json::object();
  for (const auto& [code, count] : statistics.failures) {
    failures[absl::StatusCodeToString(code)] = count;
  }
  ordered_json latency = ordered_json::object();
  if (!statistics.seconds.empty()) {
    for (const double percent : kPercentiles) {
      latency[absl::StrCat("p", percent)] = Percentile(statistics.seconds, percent);
    }
    latency["max"] = statistics.seconds.back();
  }
  ordered_json json = {
      {"ok", statistics.ok},
      {"retried", statistics.retried},
      {"failed", statistics.failed},
      {"wrong", statistics.wrong},
      {"verified", verified},
      {"failures", std::move(failures)},
      {"seconds", seconds},
      {"answers_per_second", static_cast<double>(statistics.seconds.size()) / seconds},
      {"bytes_per_second", static_cast<double>(statistics.bytes) / seconds},
      {"latency_seconds", std::move(latency)}};
  if (!statistics.last_failure.ok()) json["last_failure"] = statistics.last_failure.ToString();
  if (statistics.wrong > 0) json["first_wrong"] = statistics.first_wrong;
  std::printf("%s\n", json.dump().c_str());
}

int RunBench(const BenchOptions& options, const ClientOptions& server) {
  const absl::StatusOr<std::unique_ptr<Client>> client = Client::Connect(server);
  if (!client.ok()) return Misused(client.status());
  const absl::StatusOr<v1::GetClusterResponse> cluster = (*client)->GetCluster();
  if (!cluster.ok()) return Failed(cluster.status(), server);
  ExtrasFiles files;
  AttendInputs extras;
  const auto headers = Headers(options, std::max(1, cluster->workers_size()), files, extras);
  if (!headers.ok()) return Misused(headers.status());
  const absl::StatusOr<std::vector<LoadCase>> cases = Cases(options, *headers, extras);
  if (!cases.ok()) return Misused(cases.status());

  LoadRunOptions run = {.concurrency = options.concurrency,
                        .requests = options.requests,
                        .deadline = Milliseconds(options.deadline_seconds),
                        .max_attempts = options.retries + 1,
                        .wait_for_ready = Milliseconds(options.wait_seconds),
                        .seed = options.seed};
  if (options.duration_seconds.has_value() || !options.requests.has_value()) {
    run.duration = Milliseconds(options.duration_seconds.value_or(kDefaultSeconds));
  }
  run.on_progress = [](milliseconds passed, const LoadStatistics& so_far) {
    std::fprintf(stderr, "%5lld s: %s\n", static_cast<long long>(passed.count() / 1000),
                 CountsText(so_far).c_str());
  };
  run.stopped = [] { return interrupted.load(); };
  // The first Ctrl-C ends the load, and what was counted is shown; the second ends the program.
  signal(SIGINT, [](int) {
    interrupted = true;
    signal(SIGINT, SIG_DFL);
  });
  const auto begin = std::chrono::steady_clock::now();
  LoadStatistics statistics = RunLoad(**client, *cases, run);
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
  std::sort(statistics.seconds.begin(), statistics.seconds.end());
  (options.json ? PrintJson : PrintText)(statistics, seconds.count(), options.verify);
  if (statistics.wrong > 0) return kExitWrong;
  if (statistics.ok == 0 && statistics.failed > 0) return Failed(statistics.last_failure, server);
  return kExitOk;
}

void AddRunOptions(CLI::App& command, BenchOptions& options) {
  command.add_option("--concurrency", options.concurrency, "Requests under way at a time")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  command
      .add_option("--duration", options.duration_seconds,
                  "Seconds in which requests begin (default 10, without --requests)")
      ->check(SecondsRange());
  command.add_option("--requests", options.requests, "How many requests at most")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 40));
  command.add_option("--deadline", options.deadline_seconds, "Seconds for each request")
      ->check(SecondsRange())
      ->capture_default_str();
  command.add_option("--retries", options.retries, "Further attempts of each request")
      ->check(CLI::Range(0, 1000))
      ->capture_default_str();
  AddWaitForReady(command, options.wait_seconds);
  command.add_option("--seed", options.seed, "Of the requests")->capture_default_str();
  command.add_flag("--verify", options.verify,
                   "Check rows of every answer against fp64 attention, computed beforehand");
  command.add_flag("--json", options.json, "One JSON object");
}

}  // namespace

void AddBenchCommand(CLI::App& app, Invocation& invocation) {
  auto options = std::make_shared<BenchOptions>();
  CLI::App* command = app.add_subcommand(
      "bench", "Send requests for a while; count answers, failures and wrong answers");
  command->footer(
      "Without dims: requests of many kinds, every second one of which asks for all the workers "
      "that are there at\nthe start (or as --workers says). Failures are counted, and it goes on. "
      "Ends with 6 if an answer was wrong,\nas the last failure says if none came, else with 0.\n");
  AddRunOptions(*command, *options);
  AddDims(*command, options->dims, "Dims, for requests of one kind");
  command->add_option("--layout", options->layout, "With dims: order of the tensors' dimensions")
      ->check(CLI::IsMember(TensorLayoutNames()))
      ->capture_default_str();
  AddRequestOptions(*command, options->request);
  command->callback([options, command, &invocation] {
    const auto note = [&](const char* flag) {
      if (command->count(flag) > 0) options->needs_dims = flag;
    };
    for (const char* flag : {"--layout", "--scale"}) note(flag);
    for (const char* flag : kMaskFlags) note(flag);
    for (const char* flag : kExtrasFlags) note(flag);
    invocation.run = [options, &invocation] { return RunBench(*options, invocation.client); };
  });
}

}  // namespace ringserve
