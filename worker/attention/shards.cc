#include "worker/attention/shards.h"

#include <memory>
#include <utility>

namespace ringserve {
namespace {

// Dense bytes as [batch, heads, rows, dim].
at::Tensor AsTensor(const at::Tensor& bytes, const ShardFormat& format, int64_t batch,
                    int64_t heads, int64_t rows, int64_t dim) {
  const at::Tensor elements = bytes.view(format.dtype);
  if (format.head_major) return elements.view({batch, heads, rows, dim});
  return elements.view({batch, rows, heads, dim}).transpose(1, 2);
}

}  // namespace

at::Tensor ViewOf(const at::Tensor& bytes, const ShardFormat& format,
                  const std::vector<int64_t>& rows, int64_t heads, int64_t dim, int batch_row) {
  if (rows.size() == 1) {
    const at::Tensor all = AsTensor(bytes, format, format.batch, heads, rows[0], dim);
    return batch_row < 0 ? all : all.narrow(0, batch_row, 1);
  }
  // One dense block for each batch row.
  const int64_t row_bytes = heads * dim * static_cast<int64_t>(c10::elementSize(format.dtype));
  int64_t before = 0;
  for (int b = 0; b < batch_row; ++b) before += rows[b];
  return AsTensor(bytes.narrow(0, before * row_bytes, rows[batch_row] * row_bytes), format, 1,
                  heads, rows[batch_row], dim);
}

std::pair<at::Tensor, at::Tensor> KeysAndValuesOf(const at::Tensor& bytes,
                                                  const ShardFormat& format,
                                                  const std::vector<int64_t>& rows, int batch_row) {
  const int64_t k_bytes = bytes.numel() / (format.head_dim + format.value_dim) * format.head_dim;
  const auto view = [&](int64_t begin, int64_t end, int64_t dim) {
    return ViewOf(bytes.narrow(0, begin, end - begin), format, rows, format.kv_heads, dim,
                  batch_row);
  };
  return {view(0, k_bytes, format.head_dim), view(k_bytes, bytes.numel(), format.value_dim)};
}

int64_t TotalRows(const std::vector<int64_t>& rows, int64_t batch) {
  int64_t total = 0;
  for (const int64_t count : rows) total += count;
  return rows.size() == 1 ? total * batch : total;
}

std::span<std::byte> BytesOf(const at::Tensor& memory) {
  return {static_cast<std::byte*>(memory.mutable_data_ptr()), static_cast<size_t>(memory.numel())};
}

at::Tensor SpareMemory::Take(int64_t bytes) {
  for (at::Tensor& memory : spare_) {
    if (static_cast<int64_t>(memory.storage().nbytes()) < bytes) continue;
    const at::Tensor reused = std::exchange(memory, spare_.back());
    spare_.pop_back();
    return at::empty({0}, reused.options()).set_(reused.storage(), 0, {bytes}, {1});
  }
  spare_.clear();
  return at::empty({bytes}, at::TensorOptions(device_).dtype(at::kByte));
}

TravellingShards::TravellingShards(const RankPlan& plan, std::vector<int64_t> bytes,
                                   const at::Tensor& own)
    : plan_(plan), bytes_(std::move(bytes)), memory_(own.device()) {
  for (int index = 0; index < static_cast<int>(plan.steps.size()); ++index) {
    for (const Transfer& send : plan.steps[index].sends) last_use_[send.owner] = index;
    for (const Tile& tile : plan.steps[index].tiles) last_use_[tile.owner] = index;
  }
  held_[plan.rank] = own;
  TORCH_CHECK(own.numel() == bytes_[plan.rank], "own shard has ", own.numel(), " bytes, not ",
              bytes_[plan.rank]);
}

std::vector<SendOp> TravellingShards::Sends(int index) const {
  std::vector<SendOp> sends;
  for (const Transfer& transfer : plan_.steps[index].sends) {
    const at::Tensor& shard = held_.at(transfer.owner);
    sends.push_back({.peer = plan_.members[transfer.peer],
                     .parts = {BytesOf(shard)},
                     .keep_alive = std::make_shared<at::Tensor>(shard)});
  }
  return sends;
}

std::vector<RecvOp> TravellingShards::Receive(int index) {
  std::vector<RecvOp> recvs;
  for (const Transfer& transfer : plan_.steps[index].recvs) {
    const at::Tensor& shard = held_[transfer.owner] = memory_.Take(bytes_[transfer.owner]);
    recvs.push_back({.peer = plan_.members[transfer.peer], .parts = {BytesOf(shard)}});
  }
  return recvs;
}

void TravellingShards::Release(int index) {
  for (auto shard = held_.begin(); shard != held_.end();) {
    const auto last = last_use_.find(shard->first);
    if (shard->first == plan_.rank || (last != last_use_.end() && last->second > index)) {
      ++shard;
      continue;
    }
    memory_.Give(std::move(shard->second));
    shard = held_.erase(shard);
  }
}

}  // namespace ringserve
