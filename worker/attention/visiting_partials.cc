#include "worker/attention/visiting_partials.h"

#include <limits>
#include <memory>
#include <utility>

namespace ringserve {
namespace {

ShardFormat FormatOfPartials(ShardFormat format) {
  format.dtype = WideType(format.dtype);
  format.head_major = true;
  return format;
}

}  // namespace

VisitingPartials::VisitingPartials(const RankPlan& plan, const ShardFormat& format,
                                   at::Device device)
    : plan_(plan),
      format_(FormatOfPartials(format)),
      computed_memory_(device),
      returned_memory_(device) {}

Partial VisitingPartials::At(int owner, int batch_row) {
  const auto [computed, first] = computed_.try_emplace(owner);
  if (first) {
    computed->second = computed_memory_.Take(Bytes(owner));
    const int batch_rows = static_cast<int>(plan_.q_rows[owner].size());
    for (int b = 0; b < batch_rows; ++b)
      Clear(ViewOf(computed->second, owner, batch_rows == 1 ? -1 : b));
  }
  return ViewOf(computed->second, owner, batch_row);
}

void VisitingPartials::AddSends(int index, bool complete, std::vector<SendOp>& sends) {
  for (const int owner : plan_.steps[index].partial_sends) {
    at::Tensor& partial = computed_[owner];
    if (!partial.defined()) partial = computed_memory_.Take(Bytes(owner));
    if (!complete) {
      partial.view(format_.dtype).fill_(std::numeric_limits<double>::quiet_NaN());
    }
    sends.push_back({.peer = plan_.members[owner],
                     .parts = {BytesOf(partial)},
                     .keep_alive = std::make_shared<at::Tensor>(partial)});
  }
}

void VisitingPartials::AddReceives(int index, std::vector<RecvOp>& recvs) {
  for (const int peer : plan_.steps[index].partial_recvs) {
    returned_.push_back(returned_memory_.Take(Bytes(plan_.rank)));
    recvs.push_back({.peer = plan_.members[peer], .parts = {BytesOf(returned_.back())}});
  }
}

void VisitingPartials::Merge(int index, const std::vector<Partial>& own) {
  for (size_t i = 0; i < plan_.steps[index].partial_recvs.size(); ++i) {
    for (int entry = 0; entry < static_cast<int>(own.size()); ++entry) {
      ringserve::Merge(own[entry], ViewOf(returned_[i], plan_.rank, own.size() == 1 ? -1 : entry));
    }
  }
}

void VisitingPartials::Release(int index) {
  for (const int owner : plan_.steps[index].partial_sends) {
    computed_memory_.Give(std::move(computed_.at(owner)));
    computed_.erase(owner);
  }
  for (at::Tensor& partial : returned_) returned_memory_.Give(std::move(partial));
  returned_.clear();
}

int64_t VisitingPartials::Bytes(int owner) const {
  return TotalRows(plan_.q_rows[owner], format_.batch) * format_.q_heads * (format_.value_dim + 1) *
         static_cast<int64_t>(c10::elementSize(format_.dtype));
}

Partial VisitingPartials::ViewOf(const at::Tensor& bytes, int owner, int batch_row) const {
  const std::vector<int64_t>& rows = plan_.q_rows[owner];
  const int64_t out_bytes = bytes.numel() / (format_.value_dim + 1) * format_.value_dim;
  const at::Tensor out = bytes.narrow(0, 0, out_bytes);
  const at::Tensor lse = bytes.narrow(0, out_bytes, bytes.numel() - out_bytes);
  return {
      ringserve::ViewOf(out, format_, rows, format_.q_heads, format_.value_dim, batch_row),
      ringserve::ViewOf(lse, format_, rows, format_.q_heads, 1, batch_row).squeeze(-1),
  };
}

}  // namespace ringserve
