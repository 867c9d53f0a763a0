#include "worker/attention/ring.h"

#include <utility>

#include "worker/attention/partial.h"
#include "worker/attention/ring_work.h"
#include "worker/attention/visiting_partials.h"

namespace ringserve {
namespace {

// By owner: bytes of the shards that travel.
std::vector<int64_t> ShardBytes(const RankPlan& plan, const ShardFormat& format) {
  const int64_t numbers = plan.pass_q() ? format.q_heads * format.head_dim
                                        : format.kv_heads * (format.head_dim + format.value_dim);
  const int64_t row_bytes = numbers * static_cast<int64_t>(c10::elementSize(format.dtype));
  std::vector<int64_t> bytes;
  for (const std::vector<int64_t>& rows : plan.pass_q() ? plan.q_rows : plan.kv_rows)
    bytes.push_back(TotalRows(rows, format.batch) * row_bytes);
  return bytes;
}

class Ring {
 public:
  Ring(const RankPlan& plan, const ShardFormat& format, const RankTensors& tensors,
       const RingOptions& options, Communicator& communicator, RingProgress& progress,
       RingStatistics& statistics)
      : plan_(plan),
        format_(format),
        tensors_(tensors),
        options_(options),
        work_(plan.job, tensors.kv.device(), options, communicator, progress, statistics),
        scale_(format.dtype == at::kDouble ? options.scale : static_cast<float>(options.scale)),
        shards_(plan, ShardBytes(plan, format), plan.pass_q() ? tensors.q_bytes : tensors.kv),
        partials_(plan, format, tensors.kv.device()) {
    // The answer's own memory accumulates where its type is wide enough.
    const bool narrow = format.dtype == at::kBFloat16 || format.dtype == at::kHalf;
    for (size_t i = 0; i < tensors.out.size(); ++i) {
      const at::Tensor& out = tensors.out[i];
      accumulators_.push_back(
          {narrow ? at::empty(out.sizes(), out.options().dtype(at::kFloat)) : out, tensors.lse[i]});
      if (options.block->KeepsOpen(format.dtype))
        accumulators_[i].total = at::empty(tensors.lse[i].sizes(), tensors.lse[i].options());
      Clear(accumulators_[i]);
    }
  }

  absl::Status Run() {
    work_.Compute([&] { MakeScalePositive(); });
    for (int index = 0; index < static_cast<int>(plan_.steps.size()); ++index) {
      if (options_.on_step) options_.on_step(index);
      std::vector<SendOp> sends = shards_.Sends(index);
      std::vector<RecvOp> recvs = shards_.Receive(index);
      partials_.AddSends(index, work_.complete(), sends);
      partials_.AddReceives(index, recvs);
      const absl::Status posted = work_.Post(static_cast<uint32_t>(index), sends, recvs);
      if (!posted.ok()) return posted;
      for (const Tile& tile : plan_.steps[index].tiles) work_.Compute([&] { Add(tile); });
      const absl::Status exchanged = work_.Wait();
      if (!exchanged.ok()) return exchanged;
      if (!plan_.steps[index].partial_recvs.empty()) {
        work_.Compute([&] { MergeReturned(index); });
      }
      partials_.Release(index);
      shards_.Release(index);
    }
    const absl::Status finished = work_.Finish();
    if (!finished.ok()) return finished;
    work_.Compute([&] { Finish(); });
    return work_.Ended();
  }

 private:
  void MakeScalePositive();
  void Add(const Tile& tile);
  Partial Into(const Tile& tile);
  void MergeReturned(int index);
  void SettleAll();
  at::Tensor Queries(const Tile& tile) const;
  std::pair<at::Tensor, at::Tensor> KeysAndValues(const Tile& tile) const;
  void Finish();

  const RankPlan& plan_;
  const ShardFormat& format_;
  const RankTensors& tensors_;
  const RingOptions& options_;
  RingWork work_;
  double scale_;
  TravellingShards shards_;
  VisitingPartials partials_;
  // Of this rank's queries, as RankTensors::out; open until something is merged, where the block
  // wants them so.
  std::vector<Partial> accumulators_;
};

// -q k times -scale is the same score. In an fp32 job a scale below fp32's range counts as 0.
void Ring::MakeScalePositive() {
  if (scale_ > 0) return;
  for (const at::Tensor& q : tensors_.q) q.mul_(scale_ < 0 ? -1 : 0);
  scale_ = scale_ < 0 ? -scale_ : 1;
}

void Ring::Add(const Tile& tile) {
  const auto [k, v] = KeysAndValues(tile);
  options_.block->Accumulate(Into(tile), Queries(tile), k, v, tile, scale_,
                             TermsOfBatchRow(tensors_.bias, tensors_.alibi_slopes, tile.batch_row));
  work_.Done();
}

Partial Ring::Into(const Tile& tile) {
  if (plan_.pass_q() && tile.owner != plan_.rank) return partials_.At(tile.owner, tile.batch_row);
  if (tile.batch_row < 0) return accumulators_[0];
  if (accumulators_.size() > 1) return accumulators_[tile.batch_row];
  const auto row = [&](const at::Tensor& all) { return all.narrow(0, tile.batch_row, 1); };
  const Partial& all = accumulators_[0];
  return {row(all.out), row(all.lse), all.total.defined() ? row(all.total) : at::Tensor()};
}

void Ring::MergeReturned(int index) {
  SettleAll();
  partials_.Merge(index, accumulators_);
}

void Ring::SettleAll() {
  for (Partial& partial : accumulators_) {
    if (!partial.total.defined()) continue;
    Settle(partial);
    partial.total = at::Tensor();
  }
}

at::Tensor Ring::Queries(const Tile& tile) const {
  if (!plan_.pass_q()) return BatchRow(tensors_.q, tile.batch_row);
  return ViewOf(shards_.At(tile.owner), format_, plan_.q_rows[tile.owner], format_.q_heads,
                format_.head_dim, tile.batch_row);
}

std::pair<at::Tensor, at::Tensor> Ring::KeysAndValues(const Tile& tile) const {
  const int owner = plan_.pass_q() ? plan_.rank : tile.owner;
  const at::Tensor& bytes = plan_.pass_q() ? tensors_.kv : shards_.At(owner);
  return KeysAndValuesOf(bytes, format_, plan_.kv_rows[owner], tile.batch_row);
}

void Ring::Finish() {
  SettleAll();
  for (size_t i = 0; i < accumulators_.size(); ++i) {
    if (tensors_.sink_logits.defined()) {
      AddSinks(accumulators_[i], tensors_.sink_logits, options_.lse_without_sinks);
    }
    Finalize(accumulators_[i], tensors_.out[i]);
  }
}

}  // namespace

absl::Status RunRing(const RankPlan& plan, const ShardFormat& format, const RankTensors& tensors,
                     const RingOptions& options, Communicator& communicator, RingProgress& progress,
                     RingStatistics& statistics) {
  return RunCounted(communicator, statistics, [&] {
    return Ring(plan, format, tensors, options, communicator, progress, statistics).Run();
  });
}

}  // namespace ringserve
