#include "worker/attention/ring.h"

#include <exception>
#include <string>
#include <utility>

#include <c10/core/InferenceMode.h>

#include "absl/strings/str_cat.h"
#include "worker/attention/block.h"
#include "worker/attention/partial.h"
#include "worker/attention/visiting_partials.h"

namespace ringserve {
namespace {

using Clock = Communicator::Clock;

double SecondsSince(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

// The batch rows that a tile names: all of them (-1), or one, be it a part of the one entry or an
// entry of its own.
at::Tensor BatchRow(const std::vector<at::Tensor>& tensors, int batch_row) {
  if (batch_row < 0) return tensors[0];
  return tensors.size() == 1 ? tensors[0].narrow(0, batch_row, 1) : tensors[batch_row];
}

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
        communicator_(communicator),
        progress_(progress),
        statistics_(statistics),
        scale_(format.dtype == at::kDouble ? options.scale : static_cast<float>(options.scale)),
        shards_(plan, ShardBytes(plan, format), plan.pass_q() ? tensors.q_bytes : tensors.kv),
        partials_(plan, format) {
    // The answer's own memory accumulates where its type is wide enough.
    const bool narrow = format.dtype == at::kBFloat16 || format.dtype == at::kHalf;
    for (size_t i = 0; i < tensors.out.size(); ++i) {
      const at::Tensor& out = tensors.out[i];
      accumulators_.push_back({narrow ? at::empty(out.sizes(), at::kFloat) : out, tensors.lse[i]});
      if (format.dtype != at::kDouble)
        accumulators_[i].total = at::empty(tensors.lse[i].sizes(), at::kFloat);
      Clear(accumulators_[i]);
    }
  }

  absl::Status Run() {
    Compute([&] { MakeScalePositive(); });
    for (int index = 0; index < static_cast<int>(plan_.steps.size()); ++index) {
      if (options_.on_step) options_.on_step(index);
      std::vector<SendOp> sends = shards_.Sends(index);
      std::vector<RecvOp> recvs = shards_.Receive(index);
      partials_.AddSends(index, /*complete=*/!progress_.cancelled && arithmetic_.ok(), sends);
      partials_.AddReceives(index, recvs);
      const absl::StatusOr<Communicator::Ticket> exchange = communicator_.Post(
          {.job = plan_.job, .step = static_cast<uint32_t>(index)}, sends, recvs);
      if (!exchange.ok()) return exchange.status();
      for (const Tile& tile : plan_.steps[index].tiles) Compute([&] { Add(tile); });
      const absl::Status exchanged = Wait(*exchange);
      if (!exchanged.ok()) return exchanged;
      if (!plan_.steps[index].partial_recvs.empty()) Compute([&] { MergeReturned(index); });
      partials_.Release(index);
      shards_.Release(index);
    }
    Compute([&] { Finish(); });
    return progress_.cancelled ? absl::AbortedError("cancelled") : arithmetic_;
  }

 private:
  template <typename Work>
  void Compute(const Work& work);
  void MakeScalePositive();
  void Add(const Tile& tile);
  Partial Into(const Tile& tile);
  void MergeReturned(int index);
  void SettleAll();
  at::Tensor Queries(const Tile& tile) const;
  std::pair<at::Tensor, at::Tensor> KeysAndValues(const Tile& tile) const;
  ScoreTerms Terms(int batch_row) const;
  absl::Status Wait(Communicator::Ticket exchange);
  void Finish();

  const RankPlan& plan_;
  const ShardFormat& format_;
  const RankTensors& tensors_;
  const RingOptions& options_;
  Communicator& communicator_;
  RingProgress& progress_;
  RingStatistics& statistics_;
  double scale_;
  TravellingShards shards_;
  VisitingPartials partials_;
  // Of this rank's queries, as RankTensors::out; open until something is merged, but for f64.
  std::vector<Partial> accumulators_;
  absl::Status arithmetic_;  // the first failure
  const Clock::time_point begin_ = Clock::now();
};

// A failure must not keep the others of the ring from their exchanges: it is told at the end.
template <typename Work>
void Ring::Compute(const Work& work) {
  if (progress_.cancelled || !arithmetic_.ok()) return;
  const Clock::time_point begin = Clock::now();
  progress_.computing = true;
  try {
    work();
  } catch (const std::exception& error) {
    arithmetic_ = absl::InternalError(absl::StrCat("attention failed: ", error.what()));
  }
  progress_.computing = false;
  statistics_.compute_seconds += SecondsSince(begin);
}

// -q k times -scale is the same score. In an fp32 job a scale below fp32's range counts as 0.
void Ring::MakeScalePositive() {
  if (scale_ > 0) return;
  for (const at::Tensor& q : tensors_.q) q.mul_(scale_ < 0 ? -1 : 0);
  scale_ = scale_ < 0 ? -scale_ : 1;
}

void Ring::Add(const Tile& tile) {
  const auto [k, v] = KeysAndValues(tile);
  Accumulate(Into(tile), Queries(tile), k, v, tile, scale_, Terms(tile.batch_row));
  ++progress_.tiles_done;
  ++statistics_.tiles;
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
  const auto view = [&](int64_t begin, int64_t end, int64_t dim) {
    return ViewOf(bytes.narrow(0, begin, end - begin), format_, plan_.kv_rows[owner],
                  format_.kv_heads, dim, tile.batch_row);
  };
  const int64_t k_bytes = bytes.numel() / (format_.head_dim + format_.value_dim) * format_.head_dim;
  return {view(0, k_bytes, format_.head_dim), view(k_bytes, bytes.numel(), format_.value_dim)};
}

ScoreTerms Ring::Terms(int batch_row) const {
  ScoreTerms terms = {.alibi_slopes = tensors_.alibi_slopes};
  if (tensors_.bias.empty()) return terms;
  // One bias may serve all batch rows.
  const bool one = tensors_.bias.size() == 1 && tensors_.bias[0].size(0) == 1;
  terms.bias = BatchRow(tensors_.bias, one ? -1 : batch_row);
  return terms;
}

absl::Status Ring::Wait(Communicator::Ticket exchange) {
  const Clock::time_point begin = Clock::now();
  const absl::Status status =
      communicator_.Then(exchange, begin + (begin - begin_) + options_.exchange_deadline);
  statistics_.exchange_wait_seconds += SecondsSince(begin);
  return status;
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

std::pair<uint64_t, uint64_t> BytesMoved(const Communicator& communicator) {
  std::pair<uint64_t, uint64_t> moved;
  for (const PeerCounters& peer : communicator.counters()) {
    moved.first += peer.bytes_sent;
    moved.second += peer.bytes_received;
  }
  return moved;
}

}  // namespace

absl::Status RunRing(const RankPlan& plan, const ShardFormat& format, const RankTensors& tensors,
                     const RingOptions& options, Communicator& communicator, RingProgress& progress,
                     RingStatistics& statistics) {
  const c10::InferenceMode inference;
  const auto [sent_before, received_before] = BytesMoved(communicator);
  absl::Status status;
  try {
    status = Ring(plan, format, tensors, options, communicator, progress, statistics).Run();
  } catch (const std::exception& error) {
    // Outside of a tile: the rest of the exchanges cannot be done.
    status = absl::InternalError(absl::StrCat("the ring failed: ", error.what()));
    communicator.Abort(status);
  }
  const auto [sent, received] = BytesMoved(communicator);
  statistics.bytes_sent = sent - sent_before;
  statistics.bytes_received = received - received_before;
  return status;
}

}  // namespace ringserve
