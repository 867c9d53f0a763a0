#include "tests/integration/request.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/tensor_shape.h"

namespace ringserve::test {
namespace {

// The oracle's inner loop runs so often at most.
constexpr double kOraclePairs = 4e6;

// The rows to check: all, or as many as the oracle can afford, the first and the last among them.
std::vector<int64_t> RowsToCheck(const v1::AttentionSpec& spec) {
  const double pairs_per_row = static_cast<double>(spec.batch()) * spec.q_heads() * spec.kv_len() *
                               (spec.head_dim() + ValueDim(spec)) / 128;
  const int64_t affordable =
      std::clamp<int64_t>(static_cast<int64_t>(kOraclePairs / pairs_per_row), 8, 1 << 20);
  const int64_t count = std::min(spec.q_len(), affordable);
  std::vector<int64_t> rows;
  for (int64_t i = 0; i < count; ++i) {
    rows.push_back(count == 1 ? 0 : i * (spec.q_len() - 1) / (count - 1));
  }
  return rows;
}

// The `rows` of a dense tensor of `shape`.
std::vector<std::byte> Gather(const TensorShape& shape, std::span<const std::byte> bytes,
                              const std::vector<int64_t>& rows) {
  std::vector<std::byte> gathered;
  gathered.reserve(rows.size() * shape.batch * shape.planes_per_batch * shape.row_bytes);
  for (int64_t plane = 0; plane < shape.batch * shape.planes_per_batch; ++plane) {
    for (const int64_t row : rows) {
      const auto at = bytes.begin() + (plane * shape.rows + row) * shape.row_bytes;
      gathered.insert(gathered.end(), at, at + shape.row_bytes);
    }
  }
  return gathered;
}

}  // namespace

Request::Request(v1::AttendHeader header, uint64_t seed, double gain)
    : header_(std::move(header)),
      tensors_(RandomInputs(header_.spec(), seed, gain)),
      checked_rows_(RowsToCheck(header_.spec())),
      checked_spec_(header_.spec()) {
  const v1::AttentionSpec& spec = header_.spec();
  checked_spec_.set_q_len(static_cast<int64_t>(checked_rows_.size()));
  Inputs checked = tensors_;
  checked.q = Gather(ShapeOf(v1::TENSOR_ID_Q, spec), tensors_.q, checked_rows_);
  if (spec.has_bias())
    checked.bias = Gather(ShapeOf(v1::TENSOR_ID_BIAS, spec), tensors_.bias, checked_rows_);
  const Sees sees = MaskOf(spec);
  const Distance distance = DistanceOf(spec);
  reference_ = Attend(
      checked_spec_, checked,
      [&](int64_t batch_row, int64_t q, int64_t k) { return sees(batch_row, checked_rows_[q], k); },
      [&](int64_t batch_row, int64_t q, int64_t k) {
        return distance(batch_row, checked_rows_[q], k);
      });
  if (header_.options().lse_without_sinks()) reference_.lse = reference_.lse_without_sinks;
}

v1::AttendHeader Request::Named(const std::string& request_id, int workers) const {
  v1::AttendHeader header = header_;
  header.set_request_id(request_id);
  header.mutable_options()->set_workers(workers);
  return header;
}

Answer Request::EmptyAnswer() const {
  constexpr std::byte kUnwritten{0xFF};  // NaN in every type
  const TensorBytes bytes = *BytesOf(header_.spec());
  Answer answer;
  answer.out.assign(bytes.out, kUnwritten);
  answer.lse.assign(header_.options().return_lse() ? bytes.lse : 0, kUnwritten);
  return answer;
}

absl::StatusOr<Answer> Request::AskOf(Client& client, const v1::AttendHeader& header,
                                      const CallOptions& options) const {
  Answer answer = EmptyAnswer();
  absl::StatusOr<AttendResult> result =
      client.Attend(header, inputs(), {answer.out, answer.lse}, options);
  if (!result.ok()) return result.status();
  answer.statistics = std::move(result->statistics);
  answer.attempts = result->attempts;
  return answer;
}

std::string Request::WhatIsWrong(const Answer& answer) const {
  const v1::AttentionSpec& spec = header_.spec();
  const std::vector<std::byte> out =
      Gather(ShapeOf(v1::TENSOR_ID_OUT, spec), answer.out, checked_rows_);
  std::vector<std::byte> lse;
  if (!answer.lse.empty()) {
    lse = Gather(ShapeOf(v1::TENSOR_ID_LSE, spec), answer.lse, checked_rows_);
  }
  return Compare(checked_spec_, reference_, out, lse);
}

v1::AttentionSpec MakeSpec(int64_t q_len, int64_t kv_len, int64_t q_heads, int64_t head_dim,
                           int64_t value_dim) {
  v1::AttentionSpec spec;
  spec.set_batch(1);
  spec.set_q_heads(q_heads);
  spec.set_kv_heads(1);
  spec.set_q_len(q_len);
  spec.set_kv_len(kv_len);
  spec.set_head_dim(head_dim);
  spec.set_value_dim(value_dim);
  spec.set_dtype(v1::DTYPE_F32);
  return spec;
}

v1::AttendHeader MakeHeader(v1::AttentionSpec spec, const std::string& request_id, int workers) {
  v1::AttendHeader header;
  *header.mutable_spec() = std::move(spec);
  header.mutable_options()->set_return_lse(true);
  header.mutable_options()->set_workers(workers);
  header.set_request_id(request_id);
  return header;
}

std::string WhatIsWrongWithStatistics(const v1::AttendHeader& header, const v1::Statistics& given) {
  const TensorBytes bytes = *BytesOf(header.spec());
  return WhatIsWrongWithStatistics(
      header, bytes.inputs(), bytes.out + (header.options().return_lse() ? bytes.lse : 0), given);
}

std::string WhatIsWrongWithStatistics(const v1::AttendHeader& header, uint64_t upload_bytes,
                                      uint64_t download_bytes, const v1::Statistics& given) {
  std::string wrong;
  const auto demand = [&](bool holds, const std::string& what) {
    if (!holds) absl::StrAppend(&wrong, what, "; ");
  };
  const v1::PlanSummary& plan = given.plan();
  demand(!header.request_id().empty() ? given.request_id() == header.request_id()
                                      : !given.request_id().empty(),
         absl::StrCat("request_id is '", given.request_id(), "'"));
  demand(given.upload_bytes() == upload_bytes,
         absl::StrCat("upload_bytes is ", given.upload_bytes()));
  demand(given.download_bytes() == download_bytes,
         absl::StrCat("download_bytes is ", given.download_bytes()));

  double sum = 0;
  for (const double phase : {given.queued_seconds(), given.upload_seconds(), given.wait_seconds(),
                             given.compute_seconds(), given.download_seconds()}) {
    demand(phase >= 0, absl::StrCat("a phase took ", phase, " s"));
    sum += phase;
  }
  demand(given.total_seconds() > 0 && sum > 0.9 * given.total_seconds() - 0.005 &&
             sum < 1.001 * given.total_seconds() + 0.001,
         absl::StrCat("phases sum to ", sum, " s of ", given.total_seconds()));

  demand(plan.workers() >= 1 && plan.work_size() == plan.workers() &&
             plan.bytes_size() == plan.workers() && plan.peak_bytes_size() == plan.workers() &&
             given.ranks_size() == plan.workers(),
         absl::StrCat("plan has ", plan.workers(), " workers, statistics of ", given.ranks_size()));
  if (!wrong.empty()) return wrong;
  uint64_t sent = 0, received = 0;
  for (int rank = 0; rank < given.ranks_size(); ++rank) {
    const v1::RankStatistics& counted = given.ranks(rank);
    demand(counted.bytes_sent() == plan.bytes(rank),
           absl::StrCat("rank ", rank, " sent ", counted.bytes_sent(), " bytes, planned ",
                        plan.bytes(rank)));
    demand((counted.tiles() > 0) == (plan.work(rank) > 0),
           absl::StrCat("rank ", rank, " did ", counted.tiles(), " tiles for work of ",
                        plan.work(rank)));
    demand(!counted.worker().empty(), "a rank does not name its worker");
    demand(counted.compute_seconds() >= 0 && counted.exchange_wait_seconds() >= 0 &&
               counted.compute_seconds() + counted.exchange_wait_seconds() <=
                   1.001 * counted.total_seconds() + 0.001,
           absl::StrCat("rank ", rank, "'s seconds do not add up"));
    sent += counted.bytes_sent();
    received += counted.bytes_received();
  }
  demand(sent == received, absl::StrCat(sent, " bytes were sent, ", received, " received"));
  return wrong;
}

}  // namespace ringserve::test
