#include "client/ringctl/selftest_report.h"

#include <sys/utsname.h>

#include <algorithm>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/ringctl/format.h"
#include "client/ringctl/text_table.h"
#include "proto/machine.h"
#include "proto/protocol.h"

namespace ringserve {
namespace {

using nlohmann::ordered_json;

const char* NameOfOutcome(Outcome outcome) {
  switch (outcome) {
    case Outcome::kPassed:
      return "passed";
    case Outcome::kFailed:
      return "failed";
    case Outcome::kSkipped:
      return "skipped";
  }
  return "";
}

struct Group {
  int workers = 0;
  std::string name;
  int64_t counts[3] = {};  // by outcome
  double worst = 0, seconds = 0;
};

// Forward, backward, and the rest.
int OrderOf(const std::string& group) {
  return absl::StartsWith(group, "forward") ? 0 : absl::StartsWith(group, "backward") ? 1 : 2;
}

// By workers in the order in which they first come.
std::vector<Group> GroupsOf(const std::vector<CaseResult>& results) {
  std::vector<Group> groups;
  for (const CaseResult& result : results) {
    auto group = std::find_if(groups.begin(), groups.end(), [&](const Group& other) {
      return other.workers == result.workers && other.name == result.group;
    });
    if (group == groups.end()) {
      groups.push_back({.workers = result.workers, .name = result.group});
      group = groups.end() - 1;
    }
    ++group->counts[static_cast<int>(result.outcome)];
    group->worst = std::max(group->worst, result.worst);
    group->seconds += result.seconds;
  }
  for (auto begin = groups.begin(); begin != groups.end();) {
    const auto end = std::find_if(
        begin, groups.end(), [&](const Group& group) { return group.workers != begin->workers; });
    std::stable_sort(begin, end, [](const Group& a, const Group& b) {
      return OrderOf(a.name) < OrderOf(b.name);
    });
    begin = end;
  }
  return groups;
}

std::string GroupsText(const std::vector<CaseResult>& results) {
  std::vector<std::vector<std::string>> rows = {
      {"WORKERS", "GROUP", "PASSED", "FAILED", "SKIPPED", "ERROR/TOLERANCE", "SECONDS"}};
  for (const Group& group : GroupsOf(results)) {
    std::vector<std::string> row = {group.workers == 0 ? "-" : absl::StrCat(group.workers),
                                    group.name};
    for (const int64_t count : group.counts) row.push_back(absl::StrCat(count));
    row.push_back(group.worst > 0 ? absl::StrFormat("%.2f", group.worst) : "-");
    row.push_back(absl::StrFormat("%.2f", group.seconds));
    rows.push_back(std::move(row));
  }
  return TableText(rows);
}

std::string SkippedText(const std::vector<CaseResult>& results) {
  std::set<std::string> reasons;
  for (const CaseResult& result : results) {
    if (result.outcome == Outcome::kSkipped) reasons.insert(result.why);
  }
  std::string text;
  for (const std::string& reason : reasons) absl::StrAppend(&text, "SKIPPED: ", reason, "\n");
  return text;
}

std::string FailedText(const std::vector<CaseResult>& results) {
  std::string text;
  for (const CaseResult& result : results) {
    if (result.outcome != Outcome::kFailed) continue;
    absl::StrAppend(&text, "FAILED ", result.group, ", ", result.workers,
                    result.workers == 1 ? " worker" : " workers");
    for (const char* detail : {"mask", "extras", "balancer", "rotate", "shape"}) {
      const std::string value = result.details.value(detail, "");
      if (!value.empty()) absl::StrAppend(&text, ", ", value);
    }
    absl::StrAppend(&text, ": ", result.why, "\n");
    if (!result.replay.empty()) absl::StrAppend(&text, "  again: ", result.replay, "\n");
  }
  return text;
}

// What one worker took for the same request; 0: nobody asked it.
double SecondsOfOne(const SelftestReport& report, const std::string& request) {
  for (const Speed& speed : report.speeds) {
    if (speed.workers == 1 && speed.request == request) return speed.seconds;
  }
  return 0;
}

std::string SpeedText(const SelftestReport& report) {
  if (report.speeds.empty()) return "";
  std::vector<std::vector<std::string>> rows = {
      {"REQUEST", "WORKERS", "SECONDS", "OF ONE WORKER'S"}};
  for (const Speed& speed : report.speeds) {
    const double one = SecondsOfOne(report, speed.request);
    rows.push_back({speed.request, absl::StrCat(speed.workers), SecondsText(speed.seconds),
                    one > 0 ? absl::StrFormat("%.2f", speed.seconds / one) : "-"});
  }
  return absl::StrCat("\n", TableText(rows));
}

ordered_json MachineJson() {
  utsname system = {};
  uname(&system);
  return {{"system", absl::StrCat(system.sysname, " ", system.release, " ", system.machine)},
          {"threads", AvailableThreads()},
          {"available_memory_bytes", AvailableMemoryBytes()}};
}

}  // namespace

int64_t SelftestReport::Count(Outcome outcome) const {
  return std::count_if(results.begin(), results.end(),
                       [&](const CaseResult& result) { return result.outcome == outcome; });
}

std::string SelftestSummary(const SelftestReport& report) {
  return absl::StrCat("selftest: ", report.Count(Outcome::kPassed), " passed, ",
                      report.Count(Outcome::kFailed), " failed, ", report.Count(Outcome::kSkipped),
                      " skipped, on ", report.device, ", in ", SecondsText(report.seconds));
}

std::string SelftestText(const SelftestReport& report) {
  return absl::StrCat(GroupsText(report.results), SpeedText(report), "\n",
                      SkippedText(report.results), FailedText(report.results),
                      SelftestSummary(report), "\n");
}

ordered_json SelftestJson(const SelftestReport& report) {
  ordered_json groups = ordered_json::array(), cases = ordered_json::array(),
               speeds = ordered_json::array();
  for (const Group& group : GroupsOf(report.results)) {
    groups.push_back({{"workers", group.workers},
                      {"group", group.name},
                      {"passed", group.counts[static_cast<int>(Outcome::kPassed)]},
                      {"failed", group.counts[static_cast<int>(Outcome::kFailed)]},
                      {"skipped", group.counts[static_cast<int>(Outcome::kSkipped)]},
                      {"error_by_tolerance", group.worst},
                      {"seconds", group.seconds}});
  }
  for (const CaseResult& result : report.results) {
    ordered_json one = {{"workers", result.workers},
                        {"group", result.group},
                        {"outcome", NameOfOutcome(result.outcome)},
                        {"error_by_tolerance", result.worst},
                        {"seconds", result.seconds}};
    if (!result.why.empty()) one["why"] = result.why;
    if (!result.replay.empty()) one["replay"] = result.replay;
    one.update(result.details);
    cases.push_back(std::move(one));
  }
  for (const Speed& speed : report.speeds) {
    speeds.push_back(
        {{"request", speed.request}, {"workers", speed.workers}, {"seconds", speed.seconds}});
  }
  return {{"summary",
           {{"passed", report.Count(Outcome::kPassed)},
            {"failed", report.Count(Outcome::kFailed)},
            {"skipped", report.Count(Outcome::kSkipped)},
            {"device", report.device},
            {"seconds", report.seconds}}},
          {"ringctl", RINGSERVE_VERSION},
          {"protocol", kProtocolVersion},
          {"command", report.command},
          {"began", report.began},
          {"machine", MachineJson()},
          {"devices", report.listing},
          {"groups", std::move(groups)},
          {"speed", std::move(speeds)},
          {"clusters", report.clusters},
          {"cases", std::move(cases)},
          {"log", report.log}};
}

}  // namespace ringserve
