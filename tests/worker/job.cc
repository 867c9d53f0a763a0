#include "tests/worker/job.h"

#include <atomic>
#include <cstring>
#include <stdexcept>
#include <thread>

#include "absl/strings/str_cat.h"
#include "proto/tensor_shape.h"

namespace ringserve::test {
namespace {

constexpr char kNoAnswer = '\x7F';  // a NaN in every dtype

std::string ToString(const std::vector<std::byte>& bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

std::span<const std::byte> ToBytes(const std::string& bytes) {
  return std::as_bytes(std::span(bytes));
}

v1::AttentionOptions WithLse(v1::AttentionOptions options) {
  options.set_return_lse(true);
  return options;
}

std::atomic<uint64_t> next_job{1'000'000};  // apart from FakeCluster's own

}  // namespace

v1::AttentionSpec MakeSpec(v1::DType dtype, int64_t q_heads, int64_t kv_heads, int64_t length,
                           int64_t head_dim, bool causal) {
  v1::AttentionSpec spec;
  spec.set_dtype(dtype);
  spec.set_batch(1);
  spec.set_q_heads(q_heads);
  spec.set_kv_heads(kv_heads);
  spec.set_q_len(length);
  spec.set_kv_len(length);
  spec.set_head_dim(head_dim);
  if (causal) spec.add_masks()->set_causal(true);
  return spec;
}

Job::Job(const FakeCluster& cluster, const v1::AttentionSpec& spec, v1::AttentionOptions options,
         uint64_t seed, double gain)
    : spec_(spec),
      inputs_(RandomInputs(spec, seed, gain)),
      plan_(cluster.MakePlanFor(spec, WithLse(std::move(options)))) {}

Tensors Job::Fresh() const {
  Tensors tensors = {.q = ToString(inputs_.q), .k = ToString(inputs_.k), .v = ToString(inputs_.v)};
  tensors.out.assign(ShapeOf(v1::TENSOR_ID_OUT, plan_.spec).bytes(), kNoAnswer);
  tensors.lse.assign(ShapeOf(v1::TENSOR_ID_LSE, plan_.spec).bytes(), kNoAnswer);
  return tensors;
}

std::string Job::WhatIsWrong(const Tensors& tensors) const {
  return Compare(spec_, Attend(spec_, inputs_), ToBytes(tensors.out), ToBytes(tensors.lse));
}

std::string Job::WhatIsWrongInPart(const Tensors& tensors, const Tensors& reference,
                                   size_t least) const {
  size_t answered = 0;
  for (size_t i = 0; i < tensors.out.size(); ++i) {
    if (tensors.out[i] == reference.out[i]) {
      ++answered;
    } else if (tensors.out[i] != kNoAnswer) {
      return absl::StrCat("byte ", i, " of out is wrong");
    }
  }
  return answered >= least ? "" : absl::StrCat("only ", answered, " bytes are answered");
}

std::string Job::RunOn(FakeCluster& cluster) const {
  Tensors tensors = Fresh();
  const absl::Status status = cluster.Run(plan_, tensors);
  return status.ok() ? WhatIsWrong(tensors) : status.ToString();
}

HeldCalls::HeldCalls(FakeCluster& cluster, const Job& job, std::vector<int> members)
    : members_(std::move(members)) {
  const Tensors tensors = job.Fresh();
  const uint64_t id = next_job++;
  for (int r = 0; r < job.ranks(); ++r) {
    v1::Assignment assignment = AssignmentFor(job.plan(), r);
    assignment.set_job(id);
    assignment.set_request_id(absl::StrCat("held", id));
    calls_.push_back(std::make_unique<RankCall>(cluster.stub(members_[r]), std::move(assignment)));
  }
  for (const auto& call : calls_) {
    if (!call->Assign() || !call->UploadShards(job.plan(), tensors) || !call->AwaitReady()) {
      throw std::runtime_error(call->Finish().ToString());
    }
  }
}

void HeldCalls::Start(const std::string& epoch) {
  for (const auto& call : calls_) call->Start(epoch, members_);
}

std::vector<absl::Status> HeldCalls::Collect(const Job& job, Tensors& tensors,
                                             std::vector<v1::RankStatistics>* statistics) {
  std::vector<absl::Status> ends;
  for (const auto& call : calls_) {
    v1::RankStatistics rank;
    ends.push_back(call->Collect(job.plan(), tensors, &rank));
    if (statistics != nullptr) statistics->push_back(rank);
  }
  return ends;
}

}  // namespace ringserve::test
