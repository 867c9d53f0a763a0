#include "worker/attention/kv_shards.h"

#include <algorithm>
#include <memory>
#include <utility>

namespace ringserve {
namespace {

std::span<std::byte> BytesOf(const at::Tensor& memory) {
  return {static_cast<std::byte*>(memory.mutable_data_ptr()), static_cast<size_t>(memory.numel())};
}

// Dense bytes as [batch, heads, rows, dim].
at::Tensor AsTensor(const at::Tensor& bytes, const KvFormat& format, int64_t batch, int64_t rows,
                    int64_t dim) {
  const at::Tensor elements = bytes.view(format.dtype);
  if (format.head_major) return elements.view({batch, format.kv_heads, rows, dim});
  return elements.view({batch, rows, format.kv_heads, dim}).transpose(1, 2);
}

}  // namespace

KvShards::KvShards(const RankPlan& plan, const KvFormat& format, const at::Tensor& own)
    : plan_(plan), format_(format) {
  for (int index = 0; index < static_cast<int>(plan.steps.size()); ++index) {
    for (const Transfer& send : plan.steps[index].sends) last_use_[send.owner] = index;
    for (const Tile& tile : plan.steps[index].tiles) last_use_[tile.owner] = index;
  }
  held_[plan.rank] = own;
  TORCH_CHECK(own.numel() == Bytes(plan.rank), "own shard has ", own.numel(), " bytes, not ",
              Bytes(plan.rank));
}

std::vector<SendOp> KvShards::Sends(int index) const {
  std::vector<SendOp> sends;
  for (const Transfer& transfer : plan_.steps[index].sends) {
    const at::Tensor& shard = held_.at(transfer.owner);
    sends.push_back({.peer = plan_.members[transfer.peer],
                     .parts = {BytesOf(shard)},
                     .keep_alive = std::make_shared<at::Tensor>(shard)});
  }
  return sends;
}

std::vector<RecvOp> KvShards::Receive(int index) {
  std::vector<RecvOp> recvs;
  for (const Transfer& transfer : plan_.steps[index].recvs) {
    const at::Tensor& shard = held_[transfer.owner] = Memory(Bytes(transfer.owner));
    recvs.push_back({.peer = plan_.members[transfer.peer], .parts = {BytesOf(shard)}});
  }
  return recvs;
}

void KvShards::Release(int index) {
  for (auto shard = held_.begin(); shard != held_.end();) {
    const auto last = last_use_.find(shard->first);
    if (shard->first == plan_.rank || (last != last_use_.end() && last->second > index)) {
      ++shard;
      continue;
    }
    reusable_.push_back(std::move(shard->second));
    shard = held_.erase(shard);
  }
}

KvShards::Views KvShards::At(int owner, int batch_row) const {
  const at::Tensor& bytes = held_.at(owner);
  const std::vector<int64_t>& rows = plan_.kv_rows[owner];
  const int64_t k_bytes = bytes.numel() / (format_.head_dim + format_.value_dim) * format_.head_dim;
  const at::Tensor k_part = bytes.narrow(0, 0, k_bytes);
  const at::Tensor v_part = bytes.narrow(0, k_bytes, bytes.numel() - k_bytes);
  if (rows.size() == 1) {
    const at::Tensor k = AsTensor(k_part, format_, format_.batch, rows[0], format_.head_dim);
    const at::Tensor v = AsTensor(v_part, format_, format_.batch, rows[0], format_.value_dim);
    if (batch_row < 0) return {k, v};
    return {k.narrow(0, batch_row, 1), v.narrow(0, batch_row, 1)};
  }
  // One dense block per batch row.
  const int64_t row_width =
      format_.kv_heads * static_cast<int64_t>(c10::elementSize(format_.dtype));
  int64_t before = 0;
  for (int b = 0; b < batch_row; ++b) before += rows[b];
  const auto block = [&](const at::Tensor& part, int64_t dim) {
    const int64_t width = row_width * dim;
    return AsTensor(part.narrow(0, before * width, rows[batch_row] * width), format_, 1,
                    rows[batch_row], dim);
  };
  return {block(k_part, format_.head_dim), block(v_part, format_.value_dim)};
}

int64_t KvShards::Bytes(int owner) const {
  int64_t rows = 0;
  for (const int64_t count : plan_.kv_rows[owner]) rows += count;
  if (plan_.kv_rows[owner].size() == 1) rows *= format_.batch;
  return rows * format_.kv_heads * (format_.head_dim + format_.value_dim) *
         static_cast<int64_t>(c10::elementSize(format_.dtype));
}

at::Tensor KvShards::Memory(int64_t bytes) {
  for (at::Tensor& memory : reusable_) {
    if (static_cast<int64_t>(memory.storage().nbytes()) < bytes) continue;
    const at::Tensor reused = std::exchange(memory, reusable_.back());
    reusable_.pop_back();
    return at::empty({0}, at::kByte).set_(reused.storage(), 0, {bytes}, {1});
  }
  // Too small for this shard means too small to keep: the plan counts what is held at once.
  reusable_.clear();
  return at::empty({bytes}, at::kByte);
}

}  // namespace ringserve
