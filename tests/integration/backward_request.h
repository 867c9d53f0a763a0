// A request of AttendBackward with its right answer: the forward call's own answer goes in, and
// random gradients of it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "ringserve/client.h"
#include "tests/support/oracle.h"

namespace ringserve::test {

struct Gradients {
  std::vector<std::byte> d_q, d_k, d_v, d_sink_logits;
  v1::Statistics statistics;
  int attempts = 1;
};

class BackwardRequest {
 public:
  // `header` is valid for both calls but for return_lse. Asks `client` for out and lse; throws what
  // that says.
  BackwardRequest(Client& client, v1::AttendHeader header, uint64_t seed, bool with_d_lse,
                  double gain = 1);

  const v1::AttendHeader& header() const { return header_; }  // of the backward call
  const Inputs& tensors() const { return tensors_; }
  BackwardInputs inputs() const;
  const std::vector<std::byte>& d_out() const { return d_out_; }
  const std::vector<std::byte>& d_lse() const { return d_lse_; }

  // The same tensors under another id, or for another number of workers.
  v1::AttendHeader Named(const std::string& request_id, int workers) const;

  absl::StatusOr<Gradients> AskOf(Client& client, const v1::AttendHeader& header,
                                  const CallOptions& options = {}) const;

  // Empty: the answer and its statistics are right. Takes the oracle's time.
  std::string WhatIsWrong(const Gradients& gradients, const v1::AttendHeader& header) const;

 private:
  v1::AttendHeader header_;
  const Inputs tensors_;
  std::vector<std::byte> out_, lse_, d_out_, d_lse_;
};

}  // namespace ringserve::test
