// A job with its right answer, run on the workers of a FakeCluster.
#pragma once

#include <string>
#include <vector>

#include "tests/support/oracle.h"
#include "tests/worker/fake_cluster.h"

namespace ringserve::test {

// [B, H, S, D], no value_dim of its own; the mask is causal where asked for.
v1::AttentionSpec MakeSpec(v1::DType dtype, int64_t q_heads, int64_t kv_heads, int64_t length,
                           int64_t head_dim, bool causal);

class Job {
 public:
  // `spec` and `options` are valid.
  Job(const FakeCluster& cluster, const v1::AttentionSpec& spec, v1::AttentionOptions options,
      uint64_t seed, double gain = 1);

  const Plan& plan() const { return plan_; }
  int ranks() const { return plan_.ranks(); }

  // q, k and v; out and lse as no answer has them.
  Tensors Fresh() const;

  // Empty: out and lse are right.
  std::string WhatIsWrong(const Tensors& tensors) const;

  // Empty: at least `least` bytes of out are the reference's, all others as Fresh has them. For
  // answers that some ranks did not give.
  std::string WhatIsWrongInPart(const Tensors& tensors, const Tensors& reference,
                                size_t least) const;

  // Runs it, ranks on workers 0, 1, ...; empty: it was right.
  std::string RunOn(FakeCluster& cluster) const;

 private:
  const v1::AttentionSpec spec_;
  const Inputs inputs_;
  const Plan plan_;
};

// Rank r on worker members[r]. The calls of a job that is to be started, and what comes of it.
class HeldCalls {
 public:
  // Assigns every rank and uploads its shards, and waits until all are ready. Throws.
  HeldCalls(FakeCluster& cluster, const Job& job, std::vector<int> members);

  RankCall& rank(int r) { return *calls_[r]; }
  uint64_t id() const { return calls_[0]->assignment().job(); }

  void Start(const std::string& epoch);
  // Of each rank, in order; `tensors` gets the rows of those that end well.
  std::vector<absl::Status> Collect(const Job& job, Tensors& tensors,
                                    std::vector<v1::RankStatistics>* statistics = nullptr);

 private:
  const std::vector<int> members_;
  std::vector<std::unique_ptr<RankCall>> calls_;
};

}  // namespace ringserve::test
