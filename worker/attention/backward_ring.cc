#include "worker/attention/backward_ring.h"

#include <limits>
#include <memory>
#include <utility>

#include "worker/attention/backward_block.h"
#include "worker/attention/partial.h"
#include "worker/attention/ring_work.h"

namespace ringserve {
namespace {

class BackwardRing {
 public:
  BackwardRing(const BackwardPlan& plan, const ShardFormat& format, const BackwardTensors& tensors,
               const RingOptions& options, Communicator& communicator, RingProgress& progress,
               RingStatistics& statistics)
      : plan_(plan),
        format_(format),
        wide_format_(Widened(format)),
        tensors_(tensors),
        options_(options),
        work_(plan.shards.job, tensors.kv.device(), options, communicator, progress, statistics),
        scale_(format.dtype == at::kDouble ? options.scale : static_cast<float>(options.scale)),
        shards_(plan.shards, ShardBytes(format), tensors.kv),
        gradient_bytes_(ShardBytes(wide_format_)),
        computed_memory_(tensors.kv.device()),
        received_memory_(tensors.kv.device()) {}

  absl::Status Run() {
    // Memory that every exchange needs, whatever becomes of the arithmetic.
    const bool narrow = wide_format_.dtype != format_.dtype;
    d_kv_ = narrow ? at::empty({gradient_bytes_[rank()]}, tensors_.kv.options()) : tensors_.d_kv;
    if (HasSinks()) d_sinks_ = at::empty({format_.q_heads}, Wide(tensors_.kv));
    work_.Compute([&] { Begin(narrow); });
    for (int index = 0; index < static_cast<int>(plan_.shards.steps.size()); ++index) {
      if (options_.on_step) options_.on_step(index);
      const absl::Status status = RunStep(index);
      if (!status.ok()) return status;
    }
    const absl::Status status = HasSinks() ? AddUpSinks() : absl::OkStatus();
    if (!status.ok()) return status;
    const absl::Status finished = work_.Finish();
    if (!finished.ok()) return finished;
    work_.Compute([&] { Finish(); });
    return work_.Ended();
  }

 private:
  static ShardFormat Widened(ShardFormat format) {
    format.dtype = WideType(format.dtype);
    return format;
  }
  std::vector<int64_t> ShardBytes(const ShardFormat& format) const;
  at::TensorOptions Wide(const at::Tensor& as) const {
    return as.options().dtype(wide_format_.dtype);
  }
  int rank() const { return plan_.shards.rank; }
  int ranks() const { return static_cast<int>(plan_.shards.members.size()); }
  bool HasSinks() const { return tensors_.sink_logits.defined(); }

  void Begin(bool narrow);
  void BeginRows(size_t entry);
  absl::Status RunStep(int index);
  void SendGradients(int index, std::vector<SendOp>& sends);
  void ReceiveGradients(int index, std::vector<RecvOp>& recvs);
  void Add(const Tile& tile);
  void EndStep(int index);
  absl::Status AddUpSinks();
  void Finish();

  const BackwardPlan& plan_;
  const ShardFormat format_, wide_format_;
  const BackwardTensors& tensors_;
  const RingOptions& options_;
  RingWork work_;
  const double scale_;
  TravellingShards shards_;
  const std::vector<int64_t> gradient_bytes_;  // by owner
  std::vector<at::Tensor> d_q_, lse_, delta_;  // wide, by entry
  at::Tensor d_kv_;                            // wide: of this rank's own shard
  at::Tensor d_sinks_;                         // wide: what this rank's rows give
  // Of the shard of another rank: computed in this step; on its way since; and on its way here.
  at::Tensor computed_, sent_, received_;
  SpareMemory computed_memory_, received_memory_;
};

std::vector<int64_t> BackwardRing::ShardBytes(const ShardFormat& format) const {
  const int64_t row_bytes = format.kv_heads * (format.head_dim + format.value_dim) *
                            static_cast<int64_t>(c10::elementSize(format.dtype));
  std::vector<int64_t> bytes;
  for (const std::vector<int64_t>& rows : plan_.shards.kv_rows)
    bytes.push_back(TotalRows(rows, format.batch) * row_bytes);
  return bytes;
}

void BackwardRing::Begin(bool narrow) {
  d_kv_.zero_();
  if (HasSinks()) d_sinks_.zero_();
  for (size_t i = 0; i < tensors_.q.size(); ++i) {
    d_q_.push_back(narrow ? at::zeros(tensors_.q[i].sizes(), Wide(tensors_.q[i]))
                          : tensors_.d_q[i].zero_());
    BeginRows(i);
  }
}

// The lse of all scores and the deltas that go with it. Without the sinks, lse = s' say, the
// gradient of s' by a score is e^(score - s') = e^(score - lse) e^(lse - s'), and by a sink 0.
void BackwardRing::BeginRows(size_t entry) {
  const at::Tensor& given = tensors_.lse[entry];
  at::Tensor d_lse = tensors_.d_lse.empty() ? at::Tensor() : tensors_.d_lse[entry];
  if (!HasSinks()) {
    lse_.push_back(given);
    delta_.push_back(RowDeltas(tensors_.out[entry], tensors_.d_out[entry], d_lse));
    return;
  }
  at::Tensor delta = RowDeltas(tensors_.out[entry], tensors_.d_out[entry], {});
  at::Tensor lse = given;
  if (options_.lse_without_sinks) {
    const at::Tensor sinks = tensors_.sink_logits.to(given.scalar_type()).view({1, -1, 1});
    lse = at::logaddexp(given, sinks.expand_as(given));
    d_sinks_.add_(SinkGradients(tensors_.sink_logits, lse, delta));
    if (d_lse.defined()) delta.sub_((d_lse * (lse - given).exp()).masked_fill(given.isneginf(), 0));
  } else {
    if (d_lse.defined()) delta.sub_(d_lse);
    d_sinks_.add_(SinkGradients(tensors_.sink_logits, lse, delta));
  }
  lse_.push_back(std::move(lse));
  delta_.push_back(std::move(delta));
}

absl::Status BackwardRing::RunStep(int index) {
  std::vector<SendOp> sends = shards_.Sends(index);
  std::vector<RecvOp> recvs = shards_.Receive(index);
  SendGradients(index, sends);
  ReceiveGradients(index, recvs);
  const absl::Status posted = work_.Post(static_cast<uint32_t>(index), sends, recvs);
  if (!posted.ok()) return posted;
  const std::vector<Tile>& tiles = plan_.shards.steps[index].tiles;
  if (!tiles.empty() && tiles[0].owner != rank()) {
    computed_ = computed_memory_.Take(gradient_bytes_[tiles[0].owner]);
    work_.Compute([&] { computed_.zero_(); });
  }
  for (const Tile& tile : tiles) work_.Compute([&] { Add(tile); });
  const absl::Status exchanged = work_.Wait();
  if (!exchanged.ok()) return exchanged;
  EndStep(index);
  return absl::OkStatus();
}

// What lacks something must not pass for gradients.
void BackwardRing::SendGradients(int index, std::vector<SendOp>& sends) {
  const std::optional<int> owner = plan_.gradients_to[index];
  if (!owner) return;
  sent_ = std::exchange(computed_, {});
  if (!work_.complete()) {
    sent_.view(wide_format_.dtype).fill_(std::numeric_limits<double>::quiet_NaN());
  }
  sends.push_back({.peer = plan_.shards.members[*owner],
                   .parts = {BytesOf(sent_)},
                   .keep_alive = std::make_shared<at::Tensor>(sent_)});
}

void BackwardRing::ReceiveGradients(int index, std::vector<RecvOp>& recvs) {
  const std::optional<int> reader = plan_.gradients_from[index];
  if (!reader) return;
  received_ = received_memory_.Take(gradient_bytes_[rank()]);
  recvs.push_back({.peer = plan_.shards.members[*reader], .parts = {BytesOf(received_)}});
}

void BackwardRing::Add(const Tile& tile) {
  const int b = tile.batch_row;
  const std::vector<int64_t>& rows = plan_.shards.kv_rows[tile.owner];
  const auto [k, v] = KeysAndValuesOf(shards_.At(tile.owner), format_, rows, b);
  const auto [d_k, d_v] =
      KeysAndValuesOf(tile.owner == rank() ? d_kv_ : computed_, wide_format_, rows, b);
  options_.block->AccumulateGradients({BatchRow(d_q_, b), d_k, d_v},
                                      {BatchRow(tensors_.q, b), BatchRow(tensors_.d_out, b),
                                       BatchRow(lse_, b), BatchRow(delta_, b)},
                                      k, v, tile, scale_,
                                      TermsOfBatchRow(tensors_.bias, tensors_.alibi_slopes, b));
  work_.Done();
}

void BackwardRing::EndStep(int index) {
  if (received_.defined()) {
    work_.Compute([&] { d_kv_.view(wide_format_.dtype).add_(received_.view(wide_format_.dtype)); });
    received_memory_.Give(std::exchange(received_, {}));
  }
  if (sent_.defined()) computed_memory_.Give(std::exchange(sent_, {}));
  shards_.Release(index);
}

// In the order of the ranks. A step of its own, the last of every rank.
absl::Status BackwardRing::AddUpSinks() {
  const auto bytes = [](const at::Tensor& numbers) { return BytesOf(numbers.view(at::kByte)); };
  if (!work_.complete()) d_sinks_.fill_(std::numeric_limits<double>::quiet_NaN());
  std::vector<SendOp> sends;
  std::vector<RecvOp> recvs;
  std::vector<at::Tensor> of_others;
  if (rank() != 0) {
    sends.push_back({.peer = plan_.shards.members[0],
                     .parts = {bytes(d_sinks_)},
                     .keep_alive = std::make_shared<at::Tensor>(d_sinks_)});
  }
  for (int other = 1; rank() == 0 && other < ranks(); ++other) {
    of_others.push_back(at::empty_like(d_sinks_));
    recvs.push_back({.peer = plan_.shards.members[other], .parts = {bytes(of_others.back())}});
  }
  const absl::Status posted = work_.Post(static_cast<uint32_t>(ranks()) + 1, sends, recvs);
  if (!posted.ok()) return posted;
  const absl::Status exchanged = work_.Wait();
  if (!exchanged.ok()) return exchanged;
  for (const at::Tensor& of_other : of_others) d_sinks_.add_(of_other);
  return absl::OkStatus();
}

void BackwardRing::Finish() {
  if (wide_format_.dtype != format_.dtype) {
    tensors_.d_kv.view(format_.dtype).copy_(d_kv_.view(wide_format_.dtype));
    for (size_t i = 0; i < d_q_.size(); ++i) tensors_.d_q[i].copy_(d_q_[i]);
  }
  if (HasSinks() && rank() == 0) tensors_.d_sink_logits.copy_(d_sinks_);
}

}  // namespace

absl::Status RunRingBackward(const BackwardPlan& plan, const ShardFormat& format,
                             const BackwardTensors& tensors, const RingOptions& options,
                             Communicator& communicator, RingProgress& progress,
                             RingStatistics& statistics) {
  return RunCounted(communicator, statistics, [&] {
    return BackwardRing(plan, format, tensors, options, communicator, progress, statistics).Run();
  });
}

}  // namespace ringserve
