#include "server/request_record.h"

#include "absl/status/status.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_format.h"
#include "server/plan/names.h"

namespace ringserve {
namespace {

// From `begin` to `end`, or to `cut` where that was not reached; 0 where `begin` was not.
double Seconds(const RequestRecord::Moment& begin, const RequestRecord::Moment& end,
               const RequestRecord::Moment& cut) {
  if (!begin.has_value()) return 0;
  const RequestRecord::Moment until = end.has_value() ? end : cut;
  if (!until.has_value()) return 0;
  return std::chrono::duration<double>(*until - *begin).count();
}

}  // namespace

v1::Statistics RequestRecord::ToProto(Clock::time_point now) const {
  v1::Statistics statistics;
  statistics.set_request_id(request_id);
  *statistics.mutable_plan() = plan;
  statistics.set_queued_seconds(Seconds(header, admitted, now));
  statistics.set_upload_seconds(Seconds(admitted, input_complete, now));
  statistics.set_wait_seconds(Seconds(input_complete, started, now));
  statistics.set_compute_seconds(Seconds(started, computed, now));
  statistics.set_download_seconds(Seconds(computed, downloaded, now));
  statistics.set_total_seconds(Seconds(header, ended, now));
  statistics.set_upload_bytes(upload_bytes);
  statistics.set_download_bytes(download_bytes);
  for (const v1::RankStatistics& rank : ranks) *statistics.add_ranks() = rank;
  return statistics;
}

std::string RequestRecord::LogLine(const absl::Status& outcome) const {
  const v1::Statistics statistics = ToProto(ended.value_or(Clock::time_point()));
  uint64_t exchanged = 0;
  for (const v1::RankStatistics& rank : ranks) exchanged += rank.bytes_sent();
  std::string line =
      absl::StrFormat("request=%s job=%d epoch=%s status=%s", request_id, job,
                      epoch.empty() ? "-" : epoch, absl::StatusCodeToString(outcome.code()));
  if (plan.workers() > 0) {
    absl::StrAppendFormat(&line, " balancer=%s rotate=%s workers=%d imbalance=%.4f",
                          BalancerName(plan.balancer()), RotateName(plan.rotate()), plan.workers(),
                          plan.imbalance());
  }
  absl::StrAppendFormat(&line,
                        " upload_bytes=%d download_bytes=%d exchanged_bytes=%d queued=%.4f "
                        "upload=%.4f wait=%.4f compute=%.4f download=%.4f total=%.4f",
                        upload_bytes, download_bytes, exchanged, statistics.queued_seconds(),
                        statistics.upload_seconds(), statistics.wait_seconds(),
                        statistics.compute_seconds(), statistics.download_seconds(),
                        Seconds(begun, ended, std::nullopt));
  if (!outcome.ok()) {
    absl::StrAppend(&line, " message=\"", absl::CEscape(outcome.message()), "\"");
  }
  return line;
}

}  // namespace ringserve
