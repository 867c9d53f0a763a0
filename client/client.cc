#include "ringserve/client.h"

#include <algorithm>
#include <string>
#include <utility>

#include <grpcpp/grpcpp.h>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "client/attend_call.h"
#include "client/channel_pool.h"
#include "client/loan.h"
#include "client/retry.h"
#include "client/spans.h"
#include "proto/status.h"
#include "proto/transport.h"
#include "ringserve/v1/attention.grpc.pb.h"

namespace ringserve {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr milliseconds kControlDeadline{30'000};
constexpr milliseconds kProgressInterval{100};
constexpr milliseconds kReconnectInterval{200};
constexpr milliseconds kLeastConnectTimeout{1'000};  // at the end of a wait for readiness
constexpr milliseconds kReleaseGrace{200};
constexpr milliseconds kLongestWait = std::chrono::hours(24 * 365);
constexpr size_t kMaxRequestIdBytes = 128;

milliseconds Until(Clock::time_point deadline) {
  return std::max(milliseconds(0),
                  std::chrono::duration_cast<milliseconds>(deadline - Clock::now()));
}

// A time that is too long would overflow the clocks.
absl::Status CheckWait(const char* name, milliseconds wait) {
  if (wait > milliseconds(0) && wait <= kLongestWait) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      name, " is ", wait.count(), " ms: must be above 0 and at most ", kLongestWait.count()));
}

// A second attempt is a second request: the server's logs must not mix them.
std::string AttemptId(const std::string& request_id, int attempt) {
  if (request_id.empty() || attempt == 1) return request_id;
  const std::string suffix = absl::StrCat("-retry", attempt - 1);
  return request_id.substr(0, kMaxRequestIdBytes - suffix.size()) + suffix;
}

class GrpcClient : public Client {
 public:
  GrpcClient(ClientOptions options, std::shared_ptr<grpc::ChannelCredentials> credentials)
      : options_(std::move(options)), channels_(options_.server, std::move(credentials)) {}

  absl::StatusOr<AttendResult> Attend(const v1::AttendHeader& header, const AttendInputs& inputs,
                                      const AttendOutputs& outputs,
                                      const CallOptions& options) override;
  absl::StatusOr<AttendResult> AttendBackward(const v1::AttendHeader& header,
                                              const BackwardInputs& inputs,
                                              const BackwardOutputs& outputs,
                                              const CallOptions& options) override;
  absl::StatusOr<v1::PlanResponse> Plan(const v1::PlanRequest& request) override;
  absl::StatusOr<v1::GetClusterResponse> GetCluster() override;

 private:
  // What the attempts of one call have in common.
  struct Request {
    v1::AttendHeader header;
    const CallSpans spans;
    const bool backward;
    const CallOptions& options;
    const Clock::time_point deadline;
    Retries retries;
    int attempt = 0;
    bool accepted = false;  // this attempt
  };

  absl::StatusOr<AttendResult> Run(const v1::AttendHeader& header, CallSpans spans, bool backward,
                                   const CallOptions& options);
  absl::StatusOr<v1::Statistics> RunAttempt(Request& request);
  milliseconds ConnectTimeout(const Request& request) const;
  absl::StatusOr<std::shared_ptr<grpc::Channel>> Connect(milliseconds timeout, bool patient);
  template <typename Query, typename Answer>
  absl::StatusOr<Answer> Ask(grpc::Status (v1::Attention::Stub::*method)(grpc::ClientContext*,
                                                                         const Query&, Answer*),
                             const Query& query);

  const ClientOptions options_;
  ChannelPool channels_;
};

// Where the call waits for readiness, its end bounds a connect too.
milliseconds GrpcClient::ConnectTimeout(const Request& request) const {
  const milliseconds most = std::min(options_.connect_timeout, Until(request.deadline));
  const std::optional<Clock::time_point> ready_by = request.retries.ready_by();
  if (!ready_by.has_value()) return most;
  return std::min(most, std::max(kLeastConnectTimeout, Until(*ready_by)));
}

// A connected channel, or one that failed and will say why. `patient`: the server has answered a
// moment ago and may come back (a coordinator that restarts), so a refusal is not the last word.
absl::StatusOr<std::shared_ptr<grpc::Channel>> GrpcClient::Connect(milliseconds timeout,
                                                                   bool patient) {
  const Clock::time_point give_up = Clock::now() + timeout;
  for (;;) {
    std::shared_ptr<grpc::Channel> channel = channels_.Take();
    if (AwaitConnection(*channel, Until(give_up))) return channel;
    if (Until(give_up) == milliseconds(0)) {
      return absl::UnavailableError(
          absl::StrCat("no connection to ", options_.server, " within ", timeout.count(), " ms"));
    }
    if (!patient) return channel;
    absl::SleepFor(absl::FromChrono(std::min(kReconnectInterval, Until(give_up))));
  }
}

absl::StatusOr<v1::Statistics> GrpcClient::RunAttempt(Request& request) {
  request.accepted = false;
  // Who waits for readiness is told of each refusal, and comes again.
  const bool patient = request.attempt > 1 && request.options.wait_for_ready == milliseconds(0);
  absl::StatusOr<std::shared_ptr<grpc::Channel>> channel =
      Connect(ConnectTimeout(request), patient);
  if (!channel.ok()) return channel.status();

  auto loan = std::make_shared<Loan>();
  const uint64_t total = request.spans.bytes();
  auto call = std::make_unique<AttendCall>(request.header, request.spans, request.backward, loan);
  call->Start(*channel, std::chrono::system_clock::now() + Until(request.deadline));
  while (!call->AwaitDone(kProgressInterval)) {
    if (request.options.progress) request.options.progress(call->bytes_moved(), total);
  }
  if (request.options.progress) request.options.progress(call->bytes_moved(), total);
  request.accepted = call->accepted();
  absl::StatusOr<v1::Statistics> result = call->Result();
  call.reset();

  // A transport that is stuck in a write (its peer was stopped) still refers to the caller's bytes;
  // closing the connection, which is ours alone, frees them.
  if (!loan->AwaitReturned(kReleaseGrace)) {
    channel->reset();
    while (!loan->AwaitReturned(kProgressInterval)) {
    }
  } else if (result.ok() || result.status().code() != absl::StatusCode::kUnavailable) {
    channels_.Return(*std::move(channel));
  }
  return result;
}

absl::StatusOr<AttendResult> GrpcClient::Attend(const v1::AttendHeader& header,
                                                const AttendInputs& inputs,
                                                const AttendOutputs& outputs,
                                                const CallOptions& options) {
  absl::StatusOr<CallSpans> spans = SpansOf(header, inputs, outputs);
  if (!spans.ok()) return spans.status();
  return Run(header, *std::move(spans), /*backward=*/false, options);
}

absl::StatusOr<AttendResult> GrpcClient::AttendBackward(const v1::AttendHeader& header,
                                                        const BackwardInputs& inputs,
                                                        const BackwardOutputs& outputs,
                                                        const CallOptions& options) {
  absl::StatusOr<CallSpans> spans = SpansOf(header, inputs, outputs);
  if (!spans.ok()) return spans.status();
  v1::AttendHeader sent = header;
  sent.set_d_lse(!inputs.d_lse.empty());
  return Run(sent, *std::move(spans), /*backward=*/true, options);
}

absl::StatusOr<AttendResult> GrpcClient::Run(const v1::AttendHeader& header, CallSpans spans,
                                             bool backward, const CallOptions& options) {
  if (options.max_attempts < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("max_attempts is ", options.max_attempts, ": must be at least 1"));
  }
  const absl::Status deadline = CheckWait("deadline", options.deadline);
  if (!deadline.ok()) return deadline;
  if (options.wait_for_ready != milliseconds(0)) {
    const absl::Status wait = CheckWait("wait_for_ready", options.wait_for_ready);
    if (!wait.ok()) return wait;
  }
  Request request{header,
                  std::move(spans),
                  backward,
                  options,
                  Clock::now() + options.deadline,
                  Retries(options.max_attempts, options.wait_for_ready)};
  for (;;) {
    ++request.attempt;
    request.header.set_request_id(AttemptId(header.request_id(), request.attempt));
    absl::StatusOr<v1::Statistics> statistics = RunAttempt(request);
    if (statistics.ok()) return AttendResult{*std::move(statistics), request.attempt};

    const absl::Status& error = statistics.status();
    if (Until(request.deadline) == milliseconds(0)) {
      return absl::DeadlineExceededError(absl::StrCat("no answer within ", options.deadline.count(),
                                                      " ms, in attempt ", request.attempt, ": ",
                                                      error.ToString()));
    }
    const std::optional<milliseconds> delay =
        request.retries.DelayAfter(error, request.accepted, Clock::now());
    if (!delay.has_value() || *delay >= Until(request.deadline)) return error;
    if (options.on_retry) options.on_retry(request.attempt + 1, error);
    absl::SleepFor(absl::FromChrono(*delay));
  }
}

template <typename Query, typename Answer>
absl::StatusOr<Answer> GrpcClient::Ask(
    grpc::Status (v1::Attention::Stub::*method)(grpc::ClientContext*, const Query&, Answer*),
    const Query& query) {
  absl::StatusOr<std::shared_ptr<grpc::Channel>> channel =
      Connect(std::min(options_.connect_timeout, kControlDeadline), /*patient=*/false);
  if (!channel.ok()) return channel.status();
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + kControlDeadline);
  Answer answer;
  v1::Attention::Stub stub(*channel);
  const absl::Status status = FromGrpc((stub.*method)(&context, query, &answer), context);
  if (!status.ok()) return status;
  channels_.Return(*std::move(channel));
  return answer;
}

absl::StatusOr<v1::PlanResponse> GrpcClient::Plan(const v1::PlanRequest& request) {
  return Ask<v1::PlanRequest, v1::PlanResponse>(&v1::Attention::Stub::Plan, request);
}

absl::StatusOr<v1::GetClusterResponse> GrpcClient::GetCluster() {
  return Ask<v1::GetClusterRequest, v1::GetClusterResponse>(&v1::Attention::Stub::GetCluster, {});
}

}  // namespace

absl::StatusOr<std::unique_ptr<Client>> Client::Connect(ClientOptions options) {
  if (options.server.empty())
    return absl::InvalidArgumentError("server is empty: must be HOST:PORT or unix:PATH");
  const absl::Status timeout = CheckWait("connect_timeout", options.connect_timeout);
  if (!timeout.ok()) return timeout;
  absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> credentials = MakeChannelCredentials(
      {.cert = options.tls_cert, .key = options.tls_key, .ca = options.tls_ca});
  if (!credentials.ok()) return credentials.status();
  return std::make_unique<GrpcClient>(std::move(options), *std::move(credentials));
}

}  // namespace ringserve
