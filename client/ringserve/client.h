// The client library: one call with tensors as spans. Needs no LibTorch.
//
//   auto client = ringserve::Client::Connect({.server = "127.0.0.1:7070"});
//   ringserve::v1::AttendHeader header;  // spec and options, as ringserve/v1/attention.proto says
//   auto result = (*client)->Attend(header, {q, k, v}, {out, lse});
//   // with spec.bias, spec.alibi_slopes or spec.sink_logits: {.q = q, ..., .alibi_slopes = slopes}
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "ringserve/v1/attention.pb.h"

namespace ringserve {

struct ClientOptions {
  std::string server;                     // HOST:PORT or unix:PATH
  std::string tls_cert, tls_key, tls_ca;  // PEM files; ca alone: TLS without a client certificate
  std::chrono::milliseconds connect_timeout{5'000};
};

// Dense little-endian bytes in the spec's layout, owned by the caller until the call returns. The
// extras are empty unless the spec has them: `bias` [B|1, Hq|1, Tq, Tk] in either layout, of the
// spec's dtype, or bytes where it is boolean; `alibi_slopes` and `sink_logits` [Hq], f32.
struct AttendInputs {
  std::span<const std::byte> q, k, v;
  std::span<const std::byte> bias = {}, alibi_slopes = {}, sink_logits = {};
};

// `lse` may be empty unless options.return_lse. Undefined until the call returned OK.
struct AttendOutputs {
  std::span<std::byte> out, lse;
};

// As AttendInputs. `out` and `lse` are those of the forward call, with options.lse_without_sinks
// the lse without them; `d_out` as out. `d_lse` is empty, which is 0, or as lse.
struct BackwardInputs {
  std::span<const std::byte> q, k, v, out, lse, d_out, d_lse = {};
  std::span<const std::byte> bias = {}, alibi_slopes = {}, sink_logits = {};
};

// Gradients, as their tensors; `d_sink_logits` is empty unless the spec has sink logits. Undefined
// until the call returned OK.
struct BackwardOutputs {
  std::span<std::byte> d_q, d_k, d_v, d_sink_logits = {};
};

struct CallOptions {
  std::chrono::milliseconds deadline{600'000};  // for all attempts together; at most a year
  int max_attempts = 5;  // re-sends after a lost worker or a pushback; 1: no retry
  // For so long a server that is not ready is asked again, at most a year: one that is being
  // replaced is not there, drains, or has too few workers yet, which is UNAVAILABLE before it has
  // taken the job. max_attempts does not count those. 0: not.
  std::chrono::milliseconds wait_for_ready{0};
  // Called on the calling thread, now and then: bytes moved of bytes to move. Does not throw, nor
  // does on_retry.
  std::function<void(uint64_t done, uint64_t total)> progress;
  // Called before each further attempt with the reason for it.
  std::function<void(int attempt, const absl::Status& why)> on_retry;
};

struct AttendResult {
  v1::Statistics statistics;  // of the attempt that succeeded
  int attempts = 1;
};

// Thread safe: calls may run side by side.
class Client {
 public:
  // INVALID_ARGUMENT: options wrong or PEM files unreadable. Connects on first use.
  static absl::StatusOr<std::unique_ptr<Client>> Connect(ClientOptions options);
  virtual ~Client() = default;

  // Blocks. Statuses as Attention.Attend (attention.proto), and INVALID_ARGUMENT where a span's
  // size is not what the spec says (nothing was sent then), UNAVAILABLE at a dead address: within
  // connect_timeout, or soon after wait_for_ready has passed too.
  virtual absl::StatusOr<AttendResult> Attend(const v1::AttendHeader& header,
                                              const AttendInputs& inputs,
                                              const AttendOutputs& outputs,
                                              const CallOptions& options = {}) = 0;

  // The gradients of such a call, as Attention.AttendBackward (attention.proto). Sets header.d_lse
  // by whether inputs.d_lse is empty. Else as Attend.
  virtual absl::StatusOr<AttendResult> AttendBackward(const v1::AttendHeader& header,
                                                      const BackwardInputs& inputs,
                                                      const BackwardOutputs& outputs,
                                                      const CallOptions& options = {}) = 0;

  virtual absl::StatusOr<v1::PlanResponse> Plan(const v1::PlanRequest& request) = 0;
  virtual absl::StatusOr<v1::GetClusterResponse> GetCluster() = 0;
};

// Bytes that each tensor of `spec` must have, and its gradient. INVALID_ARGUMENT as the server
// would say.
struct TensorBytes {
  uint64_t q = 0, k = 0, v = 0, out = 0, lse = 0;
  uint64_t bias = 0, alibi_slopes = 0, sink_logits = 0;  // 0: the spec has none

  uint64_t inputs() const { return q + k + v + bias + alibi_slopes + sink_logits; }
};
absl::StatusOr<TensorBytes> BytesOf(const v1::AttentionSpec& spec);

}  // namespace ringserve
