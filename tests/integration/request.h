// A request with its right answer: what the clients of a service under test send and judge by. The
// oracle works it out for every row of a small request, for a sample of rows of a large one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "ringserve/client.h"
#include "ringserve/v1/attention.pb.h"
#include "tests/support/oracle.h"

namespace ringserve::test {

struct Answer {
  std::vector<std::byte> out, lse;  // lse: empty where the request does not ask for it
  v1::Statistics statistics;
  int attempts = 1;
};

class Request {
 public:
  // `header` is valid; its tensors are random numbers of `seed`, q times `gain`.
  Request(v1::AttendHeader header, uint64_t seed, double gain = 1);

  const v1::AttendHeader& header() const { return header_; }
  const Inputs& tensors() const { return tensors_; }
  AttendInputs inputs() const {
    return {tensors_.q,          tensors_.k, tensors_.v, tensors_.bias, tensors_.alibi_slopes,
            tensors_.sink_logits};
  }

  // The same tensors under another id, or for another number of workers.
  v1::AttendHeader Named(const std::string& request_id, int workers) const;

  // Room for out and lse, filled with bytes that no right answer has.
  Answer EmptyAnswer() const;

  // One call of the client library, with `header` or the request's own.
  absl::StatusOr<Answer> AskOf(Client& client, const v1::AttendHeader& header,
                               const CallOptions& options = {}) const;
  absl::StatusOr<Answer> AskOf(Client& client, const CallOptions& options = {}) const {
    return AskOf(client, header_, options);
  }

  // Empty: the answer is right.
  std::string WhatIsWrong(const Answer& answer) const;

 private:
  const v1::AttendHeader header_;
  const Inputs tensors_;
  std::vector<int64_t> checked_rows_;  // queries, ascending
  v1::AttentionSpec checked_spec_;     // of those queries alone
  Reference reference_;
};

// A spec of full attention in f32 and [B, H, S, D], with one K/V head.
v1::AttentionSpec MakeSpec(int64_t q_len, int64_t kv_len, int64_t q_heads, int64_t head_dim,
                           int64_t value_dim);
v1::AttendHeader MakeHeader(v1::AttentionSpec spec, const std::string& request_id, int workers);

// Empty where out, statistics and plan of one request are consistent: the bytes counted are those
// of the tensors and of the plan, no phase is negative and together they are the whole.
std::string WhatIsWrongWithStatistics(const v1::AttendHeader& header, const v1::Statistics& given);
// Likewise of any request that uploads and is answered so many bytes.
std::string WhatIsWrongWithStatistics(const v1::AttendHeader& header, uint64_t upload_bytes,
                                      uint64_t download_bytes, const v1::Statistics& given);

}  // namespace ringserve::test
