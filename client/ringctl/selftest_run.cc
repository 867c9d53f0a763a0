#include "client/ringctl/selftest_run.h"

#include <algorithm>
#include <optional>
#include <span>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/ringctl/attend_report.h"
#include "client/ringctl/names.h"
#include "client/ringctl/reference_gradients.h"
#include "client/ringctl/verify.h"

namespace ringserve {
namespace {

using nlohmann::ordered_json;
using Clock = std::chrono::steady_clock;

// No number that was never written may look like one that is right: NaN in every type.
constexpr std::byte kUnwritten{0xff};

double SecondsSince(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

ordered_json Describe(const SelftestCase& one) {
  const v1::AttentionSpec& spec = one.header.spec();
  const v1::AttentionOptions& options = one.header.options();
  return {{"seed", one.seed},
          {"dtype", NameOf(spec.dtype())},
          {"mask", one.mask},
          {"extras", one.extras},
          {"balancer", NameOf(options.balancer())},
          {"rotate", NameOf(options.rotate())},
          {"shape", absl::StrFormat("batch %d, heads %d:%d, length %d x %d, dim %d:%d",
                                    spec.batch(), spec.q_heads(), spec.kv_heads(), spec.q_len(),
                                    spec.kv_len(), spec.head_dim(), spec.value_dim())},
          {"layout", v1::TensorLayout_Name(spec.tensor_layout())}};
}

class CaseRun {
 public:
  CaseRun(Client& client, const SelftestCase& one, std::chrono::milliseconds deadline,
          bool may_lack)
      : client_(client),
        one_(one),
        call_{.deadline = deadline, .max_attempts = 1},
        may_lack_(may_lack) {
    result_.workers = one.header.options().workers();
    result_.group = one.group();
    result_.details = Describe(one);
  }

  CaseResult Do() {
    if (Forward() && one_.backward) Backward();
    return std::move(result_);
  }

 private:
  bool Forward() {
    const v1::AttentionSpec& spec = one_.header.spec();
    const TensorBytes bytes = *BytesOf(spec);
    out_.assign(bytes.out, kUnwritten);
    lse_.assign(bytes.lse, kUnwritten);
    const Clock::time_point begin = Clock::now();
    const absl::StatusOr<AttendResult> answer =
        client_.Attend(one_.header, one_.inputs(), {out_, lse_}, call_);
    result_.seconds += SecondsSince(begin);
    if (!Answered(one_.header.options(), answer)) return false;
    const Verification verification =
        Verify(spec, answer->statistics.plan().layout(), one_.inputs(),
               {out_, lse_, one_.header.options().lse_without_sinks()}, one_.seed);
    result_.details["verify"] = VerificationJson(verification);
    for (const auto& worst : {verification.out, verification.lse}) {
      if (worst.has_value()) result_.worst = std::max(result_.worst, worst->excess());
    }
    if (verification.ok() && verification.compared()) return true;
    Fail(WorstText(verification));
    return false;
  }

  void Backward() {
    const v1::AttentionSpec& spec = one_.header.spec();
    const TensorBytes bytes = *BytesOf(spec);
    v1::AttendHeader header = one_.header;
    header.mutable_options()->set_return_lse(false);
    if (header.options().rotate() == v1::ROTATE_METHOD_PASS_Q) {  // is of the forward pass alone
      header.mutable_options()->set_rotate(v1::ROTATE_METHOD_AUTO);
    }
    std::vector<std::byte> d_q(bytes.q, kUnwritten), d_k(bytes.k, kUnwritten),
        d_v(bytes.v, kUnwritten), d_sinks(bytes.sink_logits, kUnwritten);
    const Clock::time_point begin = Clock::now();
    const absl::StatusOr<AttendResult> answer =
        client_.AttendBackward(header,
                               {one_.q, one_.k, one_.v, out_, lse_, one_.d_out, one_.d_lse,
                                one_.bias, one_.alibi_slopes, one_.sink_logits},
                               {d_q, d_k, d_v, d_sinks}, call_);
    result_.seconds += SecondsSince(begin);
    if (!Answered(header.options(), answer)) return;
    const ReferenceGradients right = AttentionGradients(spec, one_.inputs(), one_.d_out, one_.d_lse,
                                                        one_.header.options().lse_without_sinks());
    Judge("d_q", WorstGradient(spec, right, right.d_q, d_q, spec.dtype()));
    Judge("d_k", WorstGradient(spec, right, right.d_k, d_k, spec.dtype()));
    Judge("d_v", WorstGradient(spec, right, right.d_v, d_v, spec.dtype()));
    Judge("d_sink_logits", WorstGradient(spec, right, right.d_sink_logits, d_sinks, v1::DTYPE_F32));
  }

  void Judge(const char* tensor, const std::optional<Deviation>& worst) {
    if (!worst.has_value()) return;
    result_.details[tensor] = {{"error", worst->error()}, {"tolerance", worst->tolerance}};
    result_.worst = std::max(result_.worst, worst->excess());
    if (worst->excess() <= 1) return;
    Fail(absl::StrFormat("%s[%d] is %.9g, should be %.9g +- %.1e", tensor, worst->element,
                         worst->got, worst->expected, worst->tolerance));
  }

  bool Answered(const v1::AttentionOptions& asked, const absl::StatusOr<AttendResult>& answer) {
    if (answer.ok()) {
      const v1::PlanSummary& ran = answer->statistics.plan();
      result_.details["plan"] = {{"balancer", NameOf(ran.balancer())},
                                 {"rotate", NameOf(ran.rotate())},
                                 {"workers", ran.workers()},
                                 {"request_id", answer->statistics.request_id()}};
      CheckPlan(asked, ran);
      return true;
    }
    if (may_lack_ && absl::IsUnimplemented(answer.status())) {
      result_.outcome = Outcome::kSkipped;
      result_.why = answer.status().ToString();
    } else {
      Fail(answer.status().ToString());
    }
    return false;
  }

  // A right answer of something else than was asked for proves nothing of what was.
  void CheckPlan(const v1::AttentionOptions& asked, const v1::PlanSummary& ran) {
    if (ran.workers() != asked.workers()) {
      Fail(absl::StrCat("ran on ", ran.workers(), " workers, not ", asked.workers()));
    }
    if (asked.balancer() != v1::BALANCER_AUTO && ran.balancer() != asked.balancer()) {
      Fail(absl::StrCat("ran with balancer ", NameOf(ran.balancer()), ", not ",
                        NameOf(asked.balancer())));
    }
    if (asked.rotate() != v1::ROTATE_METHOD_AUTO && ran.rotate() != asked.rotate()) {
      Fail(absl::StrCat("ran with rotate method ", NameOf(ran.rotate()), ", not ",
                        NameOf(asked.rotate())));
    }
  }

  void Fail(const std::string& why) {
    result_.outcome = Outcome::kFailed;
    absl::StrAppend(&result_.why, result_.why.empty() ? "" : "; ", why);
    // What no command line need repeat, but a reader may want.
    result_.details["spec"] = one_.header.spec().ShortDebugString();
    result_.details["options"] = one_.header.options().ShortDebugString();
  }

  Client& client_;
  const SelftestCase& one_;
  const CallOptions call_;
  const bool may_lack_;
  std::vector<std::byte> out_, lse_;
  CaseResult result_;
};

}  // namespace

CaseResult RunSelftestCase(Client& client, const SelftestCase& one,
                           std::chrono::milliseconds deadline, bool may_lack) {
  return CaseRun(client, one, deadline, may_lack).Do();
}

}  // namespace ringserve
