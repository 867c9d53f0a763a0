#include "client/ringctl/attend_report.h"

#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/ringctl/format.h"
#include "client/ringctl/names.h"
#include "client/ringctl/plan_json.h"
#include "client/ringctl/safetensors_header.h"

namespace ringserve {
namespace {

using nlohmann::ordered_json;

std::vector<uint64_t> BytesSent(const v1::Statistics& statistics) {
  std::vector<uint64_t> bytes;
  for (const v1::RankStatistics& rank : statistics.ranks()) bytes.push_back(rank.bytes_sent());
  return bytes;
}

uint64_t Sum(const std::vector<uint64_t>& values) {
  return std::accumulate(values.begin(), values.end(), uint64_t{0});
}

// An error beside the tolerance of its own number, so that the one exceeds the other where the
// answer is wrong, and only there: the largest, or the worst where that is wrong.
Deviation Shown(const std::optional<Deviation>& worst, const std::optional<Deviation>& largest) {
  if (!worst.has_value()) return {};
  return worst->excess() > 1 ? *worst : *largest;
}

Deviation ShownOut(const Verification& verification) {
  return Shown(verification.out, verification.largest_out);
}

Deviation ShownLse(const Verification& verification) {
  return Shown(verification.lse, verification.largest_lse);
}

// The tensor and the number that are worst of all.
std::pair<const char*, const Deviation*> Worst(const Verification& verification) {
  const Deviation* out = verification.out.has_value() ? &*verification.out : nullptr;
  const Deviation* lse = verification.lse.has_value() ? &*verification.lse : nullptr;
  if (lse == nullptr || (out != nullptr && out->excess() >= lse->excess())) return {"out", out};
  return {"lse", lse};
}

std::string VerificationText(const Verification& verification) {
  const char* verdict = !verification.ok()        ? "compared, WRONG"
                        : verification.compared() ? "right"
                                                  : "compared, NONE of out";
  std::string text = absl::StrCat(verification.rows, " rows ", verdict, ": error ",
                                  ErrorText(ShownOut(verification).error()), " out (tolerance ",
                                  ErrorText(ShownOut(verification).tolerance), "), ",
                                  ErrorText(ShownLse(verification).error()), " lse (tolerance ",
                                  ErrorText(ShownLse(verification).tolerance), ")");
  if (verification.undefined > 0) {
    absl::StrAppend(&text, "; ", verification.undefined,
                    " rows not compared, their inputs are not finite");
  }
  return text;
}

std::string SecondsLine(const v1::Statistics& statistics) {
  return absl::StrFormat(
      "%.3f = %.3f queued + %.3f upload + %.3f wait + %.3f compute + %.3f download",
      statistics.total_seconds(), statistics.queued_seconds(), statistics.upload_seconds(),
      statistics.wait_seconds(), statistics.compute_seconds(), statistics.download_seconds());
}

}  // namespace

std::string ReportText(const AttendReport& report, const std::string& path) {
  const v1::Statistics& statistics = report.result.statistics;
  const v1::PlanSummary& plan = statistics.plan();
  const v1::AttentionSpec& spec = report.spec;
  std::vector<std::int64_t> shape = {spec.batch(), spec.q_heads(), spec.q_len(), spec.value_dim()};
  if (spec.tensor_layout() == v1::TENSOR_LAYOUT_BSHD) std::swap(shape[1], shape[2]);

  std::vector<std::pair<const char*, std::string>> lines;
  const bool wrong = report.verification.has_value() && !report.verification->ok();
  lines.emplace_back("out", absl::StrCat(wrong ? "not written" : path, "  ", NameOf(spec.dtype()),
                                         " ", ShapeText(shape)));
  lines.emplace_back("workers", absl::StrCat(plan.workers(), ", ", NameOf(plan.balancer()), ", ",
                                             NameOf(plan.rotate())));
  lines.emplace_back("because", plan.reason());
  lines.emplace_back("imbalance", absl::StrFormat("%.3f%s, %.3f in all", plan.imbalance(),
                                                  plan.imbalance_is_bound() ? " at most" : "",
                                                  plan.imbalance_total()));
  lines.emplace_back("bytes",
                     absl::StrCat(BytesText(statistics.upload_bytes()), " up, ",
                                  BytesText(Sum(BytesSent(statistics))), " between workers, ",
                                  BytesText(statistics.download_bytes()), " down"));
  lines.emplace_back("seconds", SecondsLine(statistics));
  if (report.result.attempts > 1)
    lines.emplace_back("attempts", absl::StrCat(report.result.attempts));
  if (report.verification.has_value())
    lines.emplace_back("verified", VerificationText(*report.verification));
  std::string text;
  for (const auto& [name, value] : lines) {
    if (!value.empty())
      absl::StrAppendFormat(&text, "%s%-10s %s", text.empty() ? "" : "\n", name, value);
  }
  return text;
}

ordered_json ReportJson(const AttendReport& report) {
  const v1::Statistics& statistics = report.result.statistics;
  const std::vector<uint64_t> bytes = BytesSent(statistics);
  ordered_json json = PlanJson(statistics.plan());
  json["bytes"] = bytes;
  json["bytes_between_workers"] = Sum(bytes);
  json["attempts"] = report.result.attempts;
  json["request_id"] = statistics.request_id();
  json["seconds"] = {
      {"upload", statistics.upload_seconds()}, {"compute", statistics.compute_seconds()},
      {"wait", statistics.wait_seconds()},     {"download", statistics.download_seconds()},
      {"queued", statistics.queued_seconds()}, {"total", statistics.total_seconds()}};
  if (report.verification.has_value()) json["verify"] = VerificationJson(*report.verification);
  return json;
}

ordered_json VerificationJson(const Verification& verification) {
  ordered_json json = {{"rows", verification.rows},
                       {"max_error_out", ShownOut(verification).error()},
                       {"max_error_lse", ShownLse(verification).error()},
                       {"tolerance_out", ShownOut(verification).tolerance},
                       {"tolerance_lse", ShownLse(verification).tolerance},
                       {"ok", verification.ok() && verification.compared()}};
  if (verification.undefined > 0) json["rows_not_finite"] = verification.undefined;
  if (!verification.ok()) {
    const auto [tensor, worst] = Worst(verification);
    json["worst"] = {{"tensor", tensor},
                     {"batch", worst->row.batch},
                     {"head", worst->row.head},
                     {"query", worst->row.query},
                     {"element", worst->element},
                     {"value", worst->got},
                     {"expected", worst->expected},
                     {"tolerance", worst->tolerance}};
  }
  return json;
}

std::string WorstText(const Verification& verification) {
  const auto [tensor, worst] = Worst(verification);
  if (worst == nullptr) return "nothing was compared";
  const std::string element =
      std::string(tensor) == "out" ? absl::StrCat(", element ", worst->element) : "";
  return absl::StrFormat("%s of batch row %d, head %d, query %d%s is %.9g, should be %.9g +- %.1e",
                         tensor, worst->row.batch, worst->row.head, worst->row.query, element,
                         worst->got, worst->expected, worst->tolerance);
}

}  // namespace ringserve
