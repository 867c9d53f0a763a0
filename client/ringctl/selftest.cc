#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <numeric>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include <CLI/CLI.hpp>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "client/ringctl/child.h"
#include "client/ringctl/command.h"
#include "client/ringctl/machine_devices.h"
#include "client/ringctl/own_cluster.h"
#include "client/ringctl/seconds.h"
#include "client/ringctl/selftest_case.h"
#include "client/ringctl/selftest_faults.h"
#include "client/ringctl/selftest_report.h"
#include "client/ringctl/selftest_run.h"
#include "client/ringctl/selftest_speed.h"
#include "client/ringctl/status_json.h"
#include "proto/protocol.h"

namespace ringserve {
namespace {

using std::chrono::milliseconds;
using Clock = std::chrono::steady_clock;

// Where nobody says how many workers, up to these: on GPUs as many as there are, and two on one.
constexpr int kMostCpuWorkers = 3, kMostOnOneGpu = 2;
constexpr milliseconds kStart{180'000};
// A service that does not answer is not asked all the questions.
constexpr int kMostUnanswered = 3;
constexpr int64_t kSpeedTokensCpu = 2'048, kSpeedTokensGpu = 16'384;
constexpr v1::DType kSpeedTypes[] = {v1::DTYPE_F32, v1::DTYPE_BF16};

struct SelftestOptions {
  std::string device = "auto";
  std::vector<int> workers;
  int cases = kCasesOfAllKinds;
  uint64_t seed = 0;
  std::string only;  // empty: all
  std::string report;
  std::string coordinator;  // empty: clusters of our own
  double deadline_seconds = 60;

  bool Has(const char* part) const { return only.empty() || only == part; }
};

std::vector<std::pair<const char*, std::string>> TlsFlags(const ClientOptions& client) {
  return {
      {"--tls-cert", client.tls_cert}, {"--tls-key", client.tls_key}, {"--tls-ca", client.tls_ca}};
}

// The command line that asks for `options`, but for its report.
std::string CommandOf(const SelftestOptions& options, const ClientOptions& client) {
  std::error_code error;
  const auto program = std::filesystem::read_symlink("/proc/self/exe", error);
  std::string command = absl::StrCat(error ? "ringctl" : program.string(), " selftest");
  const auto add = [&](const char* flag, const std::string& value) {
    if (!value.empty()) absl::StrAppend(&command, " ", flag, " ", value);
  };
  add("--only", options.only);
  add("--coordinator", options.coordinator);
  if (options.coordinator.empty()) add("--device", options.device);
  add("--workers", absl::StrJoin(options.workers, ","));
  add("--cases", absl::StrCat(options.cases));
  add("--seed", absl::StrCat(options.seed));
  add("--deadline", absl::StrCat(options.deadline_seconds));
  for (const auto& [flag, value] : TlsFlags(client)) add(flag, value);
  return command;
}

class Selftest {
 public:
  Selftest(const SelftestOptions& options, const ClientOptions& client, SelftestReport& report)
      : options_(options), client_options_(client), report_(report) {}

  // Fills the report. Not OK: nothing could be tested, because this command was given wrongly.
  absl::Status Run() { return options_.coordinator.empty() ? RunOwn() : RunThere(); }

 private:
  absl::Status RunOwn();
  absl::Status RunThere();
  void SkipAll(const std::string& why);
  void RunCluster(int workers);
  void RunService(Client& client, int workers);
  void Status(Client& client, int workers);
  void RunCases(Client& client, int workers);
  void RunSpeed(Client& client, int workers);
  void RunFaults(Client& client, int workers);
  std::string Replay(const char* part, int workers, uint64_t seed) const;
  void Add(CaseResult result) { report_.results.push_back(std::move(result)); }
  void Fail(int workers, const char* group, std::string why) {
    Add({.workers = workers, .group = group, .outcome = Outcome::kFailed, .why = std::move(why)});
  }

  const SelftestOptions& options_;
  const ClientOptions& client_options_;
  SelftestReport& report_;
  int most_workers_ = 0;
  const OwnCluster* cluster_ = nullptr;  // that is tested; none: somebody else's
};

absl::Status Selftest::RunOwn() {
  const absl::StatusOr<std::string> worker = FindProgram("ringserve-worker");
  if (!worker.ok()) return worker.status();
  const absl::StatusOr<MachineDevices> machine = AskDevices(*worker);
  if (!machine.ok()) return machine.status();
  report_.listing = machine->listing;
  report_.device = options_.device;
  if (options_.device == "auto") report_.device = machine->gpus.empty() ? "cpu" : "cuda";
  std::vector<int> counts = options_.workers;
  if (report_.device == "cuda" && machine->gpus.empty()) {
    SkipAll(machine->why_no_gpu);
    return absl::OkStatus();
  }
  if (counts.empty()) {
    const int gpus = static_cast<int>(machine->gpus.size());
    counts.resize(report_.device == "cuda" ? std::max(kMostOnOneGpu, gpus) : kMostCpuWorkers);
    std::iota(counts.begin(), counts.end(), 1);
  }
  most_workers_ = *std::max_element(counts.begin(), counts.end());
  for (const int workers : counts) RunCluster(workers);
  return absl::OkStatus();
}

absl::Status Selftest::RunThere() {
  ClientOptions to = client_options_;
  to.server = options_.coordinator;
  const absl::StatusOr<std::unique_ptr<Client>> client = Client::Connect(to);
  if (!client.ok()) return client.status();
  const absl::StatusOr<v1::GetClusterResponse> cluster = (*client)->GetCluster();
  if (!cluster.ok()) {
    Fail(0, "status", cluster.status().ToString());
    return absl::OkStatus();
  }
  report_.device =
      cluster->workers_size() > 0 ? cluster->workers(0).device() : "workers of an unknown device";
  std::vector<int> counts = options_.workers;
  if (counts.empty()) {
    counts.resize(cluster->workers_size());
    std::iota(counts.begin(), counts.end(), 1);
  }
  if (counts.empty()) Fail(0, "status", "there are no workers");
  for (const int workers : counts) RunService(**client, workers);
  return absl::OkStatus();
}

void Selftest::SkipAll(const std::string& why) {
  std::vector<std::string> groups;
  for (const char* direction : {"forward", "backward"}) {
    for (const char* dtype : {"f32", "bf16", "f16", "f64"}) {
      if (options_.Has("cases")) groups.push_back(absl::StrCat(direction, " ", dtype));
    }
  }
  if (options_.Has("speed")) groups.emplace_back(kSpeed);
  if (options_.Has("faults")) groups.emplace_back(kFaults);
  for (const std::string& group : groups) {
    Add({.group = group, .outcome = Outcome::kSkipped, .why = why});
  }
}

void Selftest::RunCluster(int workers) {
  std::fprintf(stderr, "ringctl selftest: %d worker%s on %s\n", workers, workers == 1 ? "" : "s",
               report_.device.c_str());
  std::vector<std::string> flags = {"--device", report_.device, "--workers", absl::StrCat(workers)};
  for (const auto& [flag, value] : TlsFlags(client_options_)) {
    if (!value.empty()) flags.insert(flags.end(), {flag, value});
  }
  const absl::StatusOr<std::unique_ptr<OwnCluster>> cluster = OwnCluster::Start(flags, kStart);
  if (!cluster.ok()) return Fail(workers, "start", cluster.status().ToString());
  ClientOptions to = client_options_;
  to.server = (*cluster)->address();
  const absl::StatusOr<std::unique_ptr<Client>> client = Client::Connect(to);
  if (!client.ok()) return Fail(workers, "start", client.status().ToString());
  cluster_ = cluster->get();
  RunService(**client, workers);
  cluster_ = nullptr;
}

// The log is kept where a part has failed: later parts would push out what led to it.
void Selftest::RunService(Client& client, int workers) {
  const auto run = [&](const char* part, void (Selftest::*method)(Client&, int)) {
    const int64_t failed = report_.Count(Outcome::kFailed);
    (this->*method)(client, workers);
    if (report_.Count(Outcome::kFailed) == failed) return true;
    if (cluster_ == nullptr) return false;
    absl::StrAppend(&report_.log, "After ", part, ", workers: ", workers, "\n", cluster_->LogEnd());
    return false;
  };
  if (!run("status", &Selftest::Status)) return;
  if (options_.Has("cases")) run("cases", &Selftest::RunCases);
  if (options_.Has("speed")) run("speed", &Selftest::RunSpeed);
  if (options_.Has("faults")) run("faults", &Selftest::RunFaults);
}

// Nothing may pass for a proof of GPUs that ran elsewhere.
void Selftest::Status(Client& client, int workers) {
  const absl::StatusOr<v1::GetClusterResponse> cluster = client.GetCluster();
  if (!cluster.ok()) return Fail(workers, "status", cluster.status().ToString());
  report_.clusters.push_back(StatusJson(*cluster));
  for (const v1::Worker& worker : cluster->workers()) {
    if (options_.coordinator.empty() && !absl::StartsWith(worker.device(), report_.device)) {
      return Fail(workers, "status",
                  absl::StrCat("worker ", worker.id(), " has device ", worker.device(), ", not ",
                               report_.device));
    }
  }
}

void Selftest::RunCases(Client& client, int workers) {
  const size_t before = report_.results.size();
  int unanswered = 0;
  for (int i = 0; i < options_.cases; ++i) {
    const uint64_t seed = options_.seed + i;
    const SelftestCase one = MakeSelftestCase(seed, workers);
    if (unanswered >= kMostUnanswered) {
      Add({.workers = workers,
           .group = one.group(),
           .outcome = Outcome::kSkipped,
           .why = absl::StrCat(unanswered, " requests in a row were not answered")});
      continue;
    }
    CaseResult result =
        RunSelftestCase(client, one, Milliseconds(options_.deadline_seconds), cluster_ == nullptr);
    const bool failed = result.outcome == Outcome::kFailed;
    unanswered = failed && result.worst == 0 ? unanswered + 1 : 0;
    if (failed) result.replay = Replay("cases", workers, seed);
    Add(std::move(result));
  }
  const bool none =
      std::all_of(report_.results.begin() + static_cast<ptrdiff_t>(before), report_.results.end(),
                  [](const CaseResult& result) { return result.outcome == Outcome::kSkipped; });
  if (none) Fail(workers, "cases", "nothing that was asked is served: nothing is proved");
}

void Selftest::RunSpeed(Client& client, int workers) {
  const bool gpu = absl::StartsWith(report_.device, "cuda");
  for (const v1::DType dtype : kSpeedTypes) {
    Speed speed;
    CaseResult result =
        MeasureSpeed(client, workers, dtype, gpu ? kSpeedTokensGpu : kSpeedTokensCpu,
                     cluster_ == nullptr, speed);
    if (result.outcome == Outcome::kPassed) report_.speeds.push_back(speed);
    if (result.outcome == Outcome::kFailed) result.replay = Replay("speed", workers, 0);
    Add(std::move(result));
  }
}

void Selftest::RunFaults(Client& client, int workers) {
  if (cluster_ == nullptr) {
    return Add({.workers = workers,
                .group = kFaults,
                .outcome = Outcome::kSkipped,
                .why = "the workers of a service that somebody else runs are not killed"});
  }
  if (workers != most_workers_) return;
  for (CaseResult& result : RunFaultCases(client, workers, options_.seed)) {
    if (result.outcome == Outcome::kFailed)
      result.replay = Replay("faults", workers, options_.seed);
    Add(std::move(result));
  }
}

std::string Selftest::Replay(const char* part, int workers, uint64_t seed) const {
  SelftestOptions one = options_;
  one.only = part;
  one.device = report_.device;
  one.workers = {workers};
  one.cases = 1;
  one.seed = seed;
  return CommandOf(one, client_options_);
}

// What was passed and failed, as an exit code: a wrong answer is more than a missing one.
int ExitCodeOf(const SelftestReport& report) {
  if (report.Count(Outcome::kFailed) == 0) return kExitOk;
  const bool wrong = std::any_of(report.results.begin(), report.results.end(),
                                 [](const CaseResult& result) { return result.worst > 1; });
  return wrong ? kExitWrong : kExitFailure;
}

int RunSelftest(const SelftestOptions& options, const ClientOptions& client) {
  if (!options.coordinator.empty() && options.only == "faults") {
    return Misused(absl::InvalidArgumentError(
        "--only faults: not with --coordinator: the workers of a service that somebody else runs "
        "are not killed"));
  }
  std::ofstream file;
  if (!options.report.empty()) {
    file.open(options.report);
    if (!file) {
      return Misused(absl::InvalidArgumentError(
          absl::StrCat("--report is ", options.report, ": cannot be written")));
    }
  }
  SelftestReport report = {
      .command = CommandOf(options, client),
      .began = absl::FormatTime(absl::RFC3339_sec, absl::Now(), absl::UTCTimeZone())};
  const Clock::time_point begin = Clock::now();
  const absl::Status status = Selftest(options, client, report).Run();
  if (!status.ok()) return Misused(status);
  report.seconds = std::chrono::duration<double>(Clock::now() - begin).count();
  std::printf("%s", SelftestText(report).c_str());
  if (!options.report.empty()) {
    using Json = nlohmann::ordered_json;
    file << SelftestJson(report).dump(1, ' ', false, Json::error_handler_t::replace) << "\n";
    if (!file.flush()) {
      std::fprintf(stderr, "ringctl selftest: %s could not be written\n", options.report.c_str());
      return std::max<int>(ExitCodeOf(report), kExitFailure);
    }
    std::printf("report: %s\n", options.report.c_str());
  }
  return ExitCodeOf(report);
}

void AddSelftestOptions(CLI::App& command, SelftestOptions& options) {
  CLI::Option* device =
      command
          .add_option("--device", options.device,
                      "cpu; cuda: skipped where there is no GPU; auto: GPUs where there are any")
          ->check(CLI::IsMember({"auto", "cpu", "cuda"}))
          ->capture_default_str();
  command
      .add_option("--workers", options.workers,
                  "Numbers of workers to try, one after the other (default: 1 up to the number of "
                  "GPUs, and 2 on one GPU; on CPUs 1 to 3); more than GPUs share them")
      ->check(CLI::Range(1, kMaxRanks))
      ->delimiter(',');
  command.add_option("--cases", options.cases, "Requests for each number of workers")
      ->check(CLI::Range(1, 1'000'000))
      ->capture_default_str();
  command.add_option("--seed", options.seed, "Of the first case; the next has the next")
      ->capture_default_str();
  command.add_option("--only", options.only, "One part: cases, speed or faults")
      ->check(CLI::IsMember({"cases", "speed", "faults"}));
  command.add_option("--deadline", options.deadline_seconds, "Seconds for each request of a case")
      ->check(SecondsRange())
      ->capture_default_str();
  command.add_option("--report", options.report, "File to write: all of it, as one JSON object")
      ->type_name("FILE");
  command
      .add_option("--coordinator", options.coordinator,
                  "HOST:PORT or unix:PATH of a running service to test, instead of starting one")
      ->excludes(device);
}

}  // namespace

void AddSelftestCommand(CLI::App& app, Invocation& invocation) {
  auto options = std::make_shared<SelftestOptions>();
  CLI::App* command = app.add_subcommand(
      "selftest", "Prove that workers on this machine's GPUs, or CPUs, answer right");
  command->footer(
      "Starts clusters as `up` does, sends requests of every dtype, family of masks, balancer, "
      "rotate method\nand extra, forward and backward, and compares every answer with fp64 "
      "attention, computed here. Kills a\nworker under load, and measures. Ends with 0 if nothing "
      "failed, 6 if an answer was wrong, 1 if one was\nmissing or this machine is at fault, 2 if "
      "the "
      "command line was wrong.\n");
  AddSelftestOptions(*command, *options);
  command->callback([options, &invocation] {
    invocation.run = [options, &invocation] { return RunSelftest(*options, invocation.client); };
  });
}

}  // namespace ringserve
