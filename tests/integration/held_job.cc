#include "tests/integration/held_job.h"

#include <algorithm>
#include <atomic>
#include <stdexcept>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"

namespace ringserve::test {
namespace {

std::string NewId() {
  static std::atomic<int> next = 0;
  return absl::StrFormat("held-%04d", next++);
}

std::string RequestField(const std::string& id) { return absl::StrCat("request=", id); }

bool IsStep(Moment moment) { return moment >= Moment::kStep0 && moment <= Moment::kStep2; }

// What the log says of a job at this moment.
std::string Word(Moment moment) {
  if (IsStep(moment)) {
    return absl::StrCat("step=", static_cast<int>(moment) - static_cast<int>(Moment::kStep0), "/");
  }
  return absl::StrCat("state=", NameOf(moment), " ");
}

// A request whose ranks reserve nearly all that a worker of HeldClusterOptions() has. Bytes are
// never sent for it.
v1::AttendHeader HugeHeader(Client& client, int workers) {
  const auto header_for = [&](int64_t q_len) {
    return MakeHeader(MakeSpec(q_len, 32, 1, 8, 8), NewId(), workers);
  };
  const auto fits_in = [&](int64_t q_len) {
    const v1::AttendHeader header = header_for(q_len);
    v1::PlanRequest request;
    *request.mutable_spec() = header.spec();
    *request.mutable_options() = header.options();
    const absl::StatusOr<v1::PlanResponse> planned = client.Plan(request);
    if (absl::IsFailedPrecondition(planned.status())) return false;  // never
    if (!planned.ok()) throw std::runtime_error(planned.status().ToString());
    const auto& peaks = planned->plan().peak_bytes();
    return *std::max_element(peaks.begin(), peaks.end()) <= kHeldMemoryBytes;
  };
  int64_t fits = 1, too_long = 1 << 26;
  while (too_long - fits > 1'000) {
    const int64_t middle = fits + (too_long - fits) / 2;
    (fits_in(middle) ? fits : too_long) = middle;
  }
  return header_for(fits);
}

}  // namespace

std::string NameOf(Moment moment) {
  static const char* const kNames[] = {"queued", "reserved", "uploading", "ready",
                                       "step0",  "step1",    "step2",     "downloading"};
  return kNames[static_cast<int>(moment)];
}

std::ostream& operator<<(std::ostream& stream, Moment moment) { return stream << NameOf(moment); }

ClusterOptions HeldClusterOptions() {
  return {.workers = 3, .worker_flags = {"--memory-bytes", absl::StrCat(kHeldMemoryBytes)}};
}

const Request& SmallRequest() {
  static const Request* const request = new Request(
      [] {
        v1::AttendHeader header = MakeHeader(MakeSpec(4'096, 1'024, 8, 32, 32), "small", 0);
        header.mutable_options()->set_rotate(v1::ROTATE_METHOD_ALL_TO_ALL);
        return header;
      }(),
      1);
  return *request;
}

const Request& RequestFor(Moment moment) {
  // Small heads: much arithmetic for few bytes.
  static const Request* const long_request = new Request(
      [] {
        v1::AttendHeader header = MakeHeader(MakeSpec(24'576, 24'576, 2, 16, 16), "long", 0);
        header.mutable_options()->set_rotate(v1::ROTATE_METHOD_ALL_TO_ALL);
        return header;
      }(),
      2);
  // 64 MiB of rows: far more than all buffers on the way hold.
  static const Request* const wide_request =
      new Request(MakeHeader(MakeSpec(2'048, 64, 8, 256, 1'024), "wide", 0), 3);
  if (IsStep(moment)) return *long_request;
  if (moment == Moment::kDownloading) return *wide_request;
  return SmallRequest();
}

int WorkerOf(const Cluster& cluster, const std::string& request_id, int rank,
             std::chrono::milliseconds timeout) {
  const std::string word = absl::StrCat(RequestField(request_id), " rank=", rank);
  int found = -1;
  WaitUntil(
      [&] {
        for (int i = 0; i < cluster.workers(); ++i) {
          if (absl::StrContains(cluster.worker(i).log(), word)) found = i;
        }
        return found >= 0;
      },
      timeout);
  return found;
}

HeldJob::HeldJob(Cluster& cluster, Moment moment, int workers, int rank,
                 std::chrono::milliseconds deadline, const std::string& by)
    : cluster_(cluster), moment_(moment), workers_(workers), rank_(rank), id_(NewId()) {
  RequestFor(moment);  // the deadline is not for making it
  Obstruct();
  call_ = std::make_unique<RawCall>(NewChannel(by.empty() ? cluster.address() : by), deadline);
}

void HeldJob::Obstruct() {
  if (moment_ == Moment::kQueued) FillMemory();
  if (moment_ == Moment::kReady) KeepWorkersBusy();
}

void HeldJob::FillMemory() {
  obstacles_.push_back(std::make_unique<RawCall>(NewChannel(cluster_.address())));
  obstacles_[0]->SendHeader(HugeHeader(cluster_.client(), workers_));
  if (!obstacles_[0]->AwaitAccepted()) throw std::runtime_error("nothing fills the memory");
}

// Two in a row: the second takes the workers as soon as the first has done.
void HeldJob::KeepWorkersBusy() {
  const Request& request = RequestFor(Moment::kStep0);
  for (const char* state : {"state=running ", "state=ready "}) {
    const std::string id = NewId();
    obstacles_.push_back(std::make_unique<RawCall>(NewChannel(cluster_.address())));
    RawCall& call = *obstacles_.back();
    call.SendHeader(request.Named(id, workers_));
    call.SendTensors(request);
    call.HalfClose();
    if (!cluster_.server().WaitForLogLine({state, RequestField(id)}).has_value()) {
      throw std::runtime_error("nothing keeps the workers busy");
    }
  }
}

std::string HeldJob::Await(std::chrono::milliseconds timeout) {
  const std::string problem = BringThere();
  if (!problem.empty()) return problem;
  witness_ = &cluster_.server();
  if (InWorkersLog()) {
    const int worker = WorkerOf(cluster_, id_, rank_, timeout);
    if (worker < 0) return "no worker has its rank";
    witness_ = &cluster_.worker(worker);
  }
  const bool there =
      witness_->WaitForLogLine({Word(moment_), RequestField(id_)}, 0, timeout).has_value();
  return there ? "" : absl::StrCat("the job is not ", NameOf(moment_));
}

std::string HeldJob::BringThere() {
  const Request& request = RequestFor(moment_);
  if (!call_->SendHeader(request.Named(id_, workers_))) return "the header was not taken";
  if (moment_ == Moment::kQueued) return "";
  if (!call_->AwaitAccepted()) {
    return absl::StrCat("not accepted: ", call_->Finish().ToString());
  }
  if (moment_ == Moment::kReserved) return "";
  if (moment_ == Moment::kUploading) {
    // Nearly all of one tensor, nothing of the others.
    q_sent_ = request.tensors().q.size() - 10;
    const bool sent = call_->SendBytes(v1::TENSOR_ID_Q, request.tensors().q, 0, q_sent_);
    return sent ? "" : "the upload broke off";
  }
  return SendRest() ? "" : "the upload broke off";
}

bool HeldJob::SendRest() {
  const Inputs& tensors = RequestFor(moment_).tensors();
  all_sent_ = true;
  return call_->SendBytes(v1::TENSOR_ID_Q, tensors.q, q_sent_, tensors.q.size()) &&
         call_->SendBytes(v1::TENSOR_ID_K, tensors.k, 0, tensors.k.size()) &&
         call_->SendBytes(v1::TENSOR_ID_V, tensors.v, 0, tensors.v.size()) && call_->HalfClose();
}

absl::StatusOr<Answer> HeldJob::Complete() {
  obstacles_.clear();
  if (moment_ == Moment::kQueued && !call_->AwaitAccepted()) return call_->Finish();
  if (!all_sent_ && !SendRest()) return call_->Finish();
  return call_->Collect(request());
}

bool HeldJob::InWorkersLog() const {
  return IsStep(moment_) || moment_ == Moment::kUploading || moment_ == Moment::kDownloading;
}

bool HeldJob::StillThere() const {
  const std::string log = witness_->log();
  const std::string request = RequestField(id_);
  std::string last;
  for (const auto line : absl::StrSplit(log, '\n')) {
    if (absl::StrContains(line, request) &&
        (absl::StrContains(line, "state=") || absl::StrContains(line, "step="))) {
      last = std::string(line);
    }
  }
  return absl::StrContains(last, Word(moment_));
}

}  // namespace ringserve::test
