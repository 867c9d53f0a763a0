#include "worker/attention/ring.h"

#include <exception>
#include <string>
#include <utility>

#include <c10/core/InferenceMode.h>

#include "absl/strings/str_cat.h"
#include "worker/attention/block.h"
#include "worker/attention/partial.h"

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

class Ring {
 public:
  Ring(const RankPlan& plan, const KvFormat& format, const RankTensors& tensors,
       const RingOptions& options, Communicator& communicator, RingProgress& progress,
       RingStatistics& statistics)
      : plan_(plan),
        tensors_(tensors),
        options_(options),
        communicator_(communicator),
        progress_(progress),
        statistics_(statistics),
        scale_(format.dtype == at::kDouble ? options.scale : static_cast<float>(options.scale)),
        shards_(plan, format, tensors.kv) {
    // The answer's own memory accumulates where its type is wide enough.
    const bool narrow = format.dtype == at::kBFloat16 || format.dtype == at::kHalf;
    for (size_t i = 0; i < tensors.out.size(); ++i) {
      const at::Tensor& out = tensors.out[i];
      accumulators_.push_back(narrow ? at::empty(out.sizes(), at::kFloat) : out);
      if (format.dtype != at::kDouble)
        totals_.push_back(at::empty(tensors.lse[i].sizes(), at::kFloat));
      Clear({accumulators_[i], tensors.lse[i]});
    }
  }

  absl::Status Run() {
    Compute([&] { MakeScalePositive(); });
    for (int index = 0; index < static_cast<int>(plan_.steps.size()); ++index) {
      if (options_.on_step) options_.on_step(index);
      const std::vector<SendOp> sends = shards_.Sends(index);
      const std::vector<RecvOp> recvs = shards_.Receive(index);
      const absl::StatusOr<Communicator::Ticket> exchange = communicator_.Post(
          {.job = plan_.job, .step = static_cast<uint32_t>(index)}, sends, recvs);
      if (!exchange.ok()) return exchange.status();
      for (const Tile& tile : plan_.steps[index].tiles) Compute([&] { Add(tile); });
      const absl::Status exchanged = Wait(*exchange);
      if (!exchanged.ok()) return exchanged;
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
  ScoreTerms Terms(int batch_row) const;
  absl::Status Wait(Communicator::Ticket exchange);
  void Finish();

  const RankPlan& plan_;
  const RankTensors& tensors_;
  const RingOptions& options_;
  Communicator& communicator_;
  RingProgress& progress_;
  RingStatistics& statistics_;
  double scale_;
  KvShards shards_;
  std::vector<at::Tensor> accumulators_;  // as RankTensors::out
  std::vector<at::Tensor> totals_;        // as RankTensors::lse; f64: none
  absl::Status arithmetic_;               // the first failure
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
  const KvShards::Views kv = shards_.At(tile.owner, tile.batch_row);
  Accumulate({BatchRow(accumulators_, tile.batch_row), BatchRow(tensors_.lse, tile.batch_row),
              totals_.empty() ? at::Tensor() : BatchRow(totals_, tile.batch_row)},
             BatchRow(tensors_.q, tile.batch_row), kv.k, kv.v, tile, scale_, Terms(tile.batch_row));
  ++progress_.tiles_done;
  ++statistics_.tiles;
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
  for (size_t i = 0; i < accumulators_.size(); ++i) {
    if (!totals_.empty()) Settle({accumulators_[i], tensors_.lse[i], totals_[i]});
    const Partial partial = {accumulators_[i], tensors_.lse[i]};
    if (tensors_.sink_logits.defined()) {
      AddSinks(partial, tensors_.sink_logits, options_.lse_without_sinks);
    }
    Finalize(partial, tensors_.out[i]);
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

absl::Status RunRing(const RankPlan& plan, const KvFormat& format, const RankTensors& tensors,
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
