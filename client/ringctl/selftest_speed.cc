#include "client/ringctl/selftest_speed.h"

#include <algorithm>
#include <span>

#include "absl/strings/str_cat.h"
#include "client/ringctl/load_case.h"
#include "client/ringctl/load_run.h"
#include "client/ringctl/names.h"

namespace ringserve {
namespace {

constexpr int kTimes = 4;  // the first of which may load and compile things

}  // namespace

CaseResult MeasureSpeed(Client& client, int workers, v1::DType dtype, int64_t length, bool may_lack,
                        Speed& speed) {
  v1::AttendHeader header;
  v1::AttentionSpec& spec = *header.mutable_spec();
  spec.set_batch(1);
  spec.set_q_heads(8);
  spec.set_kv_heads(2);
  spec.set_q_len(length);
  spec.set_kv_len(length);
  spec.set_head_dim(128);
  spec.set_value_dim(128);
  spec.set_dtype(dtype);
  spec.set_tensor_layout(v1::TENSOR_LAYOUT_BHSD);
  spec.add_masks()->set_causal(true);
  header.mutable_options()->set_workers(workers);
  header.mutable_options()->set_return_lse(true);
  LoadCase load = *MakeLoadCase(header, 1);
  AddRightRows(load, 1);
  const LoadStatistics statistics = RunLoad(
      client, std::span(&load, 1), {.concurrency = 1, .requests = kTimes, .max_attempts = 1});

  CaseResult result = {.workers = workers, .group = kSpeed};
  for (const double seconds : statistics.seconds) result.seconds += seconds;
  speed = {workers, absl::StrCat(NameOf(dtype), ", causal, ", length, " tokens"), 0};
  result.details["request"] = speed.request;
  if (statistics.ok == kTimes) {
    speed.seconds = *std::min_element(statistics.seconds.begin(), statistics.seconds.end());
    result.details["seconds"] = statistics.seconds;
  } else if (may_lack && absl::IsUnimplemented(statistics.last_failure)) {
    result.outcome = Outcome::kSkipped;
    result.why = statistics.last_failure.ToString();
  } else {
    result.outcome = Outcome::kFailed;
    result.worst = statistics.wrong > 0 ? 2 : 0;
    result.why = statistics.wrong > 0 ? statistics.first_wrong : statistics.last_failure.ToString();
  }
  return result;
}

}  // namespace ringserve
