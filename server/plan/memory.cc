#include "server/plan/memory.h"

#include <algorithm>
#include <limits>

#include "proto/tensor_shape.h"
#include "server/plan/tiles.h"

namespace ringserve {
namespace {

bool NeedsDenseMask(const std::vector<std::vector<Band>>& bands) {
  for (const std::vector<Band>& row : bands) {
    for (const Band& band : row) {
      if (band.lo != Band::kUnboundedLo) return true;
    }
  }
  return false;
}

// What our own kernel rounds keys and value columns up to.
constexpr uint64_t kKeysRounded = 64, kColumnsRounded = 16;

// Rows that deltas are taken of at once.
constexpr uint64_t kDeltaRows = 1024;

// Bytes that it lays `keys` out in, over all batch rows: fp32 at most, of each key head.
uint64_t LaidOutBytes(const v1::AttentionSpec& spec, uint64_t keys) {
  const uint64_t batch = spec.batch();
  const uint64_t rows = std::min(SaturatingAdd(keys, SaturatingMultiply(kKeysRounded, batch)),
                                 SaturatingMultiply(kKernelKeysLaidOut, batch));
  return SaturatingMultiply(
      rows, spec.kv_heads() * (spec.head_dim() + ValueDim(spec) + kColumnsRounded) * sizeof(float));
}

// Does the shard of `owner` pass through `rank` on the ring?
bool Passes(const Workload& workload, int owner, int rank) {
  return owner != rank && workload.StepOf(rank, owner) <= workload.reach[owner];
}

std::vector<uint64_t> BytesHeld(const SequenceLayout& layout, int64_t batch, uint64_t row_bytes) {
  std::vector<uint64_t> bytes = RowsHeld(layout, batch);
  for (uint64_t& shard : bytes) shard = SaturatingMultiply(shard, row_bytes);
  return bytes;
}

// Of one rank: what it holds beside its own shards while the job runs, and the most rows of a tile.
struct Turning {
  uint64_t held = 0;
  uint64_t tile_queries = 0;
  uint64_t tile_keys = 0;
};

// K and V travel, or are gathered.
std::vector<Turning> TurningKv(const v1::AttentionSpec& spec, const SequenceLayout& q,
                               const SequenceLayout& kv, const Workload& workload, bool gather) {
  const std::vector<uint64_t> q_rows = RowsHeld(q, spec.batch());
  const std::vector<uint64_t> kv_rows = RowsHeld(kv, spec.batch());
  const std::vector<uint64_t> kv_bytes = KvShardBytes(spec, kv);
  std::vector<Turning> turning(workload.ranks);
  for (int rank = 0; rank < workload.ranks; ++rank) {
    Turning& own = turning[rank];
    own.tile_queries = q_rows[rank];
    for (int owner = 0; owner < workload.ranks; ++owner) {
      const bool needed = workload.Needs(rank, owner);
      if (needed) own.tile_keys = std::max(own.tile_keys, kv_rows[owner]);
      if (gather) {
        if (needed && owner != rank) own.held = SaturatingAdd(own.held, kv_bytes[owner]);
      } else if (Passes(workload, owner, rank)) {
        own.held = std::max(own.held, SaturatingMultiply(2, kv_bytes[owner]));
      }
    }
  }
  return turning;
}

// Queries travel.
std::vector<Turning> TurningQ(const v1::AttentionSpec& spec, const SequenceLayout& q,
                              const SequenceLayout& kv, const Workload& workload) {
  const std::vector<uint64_t> q_rows = RowsHeld(q, spec.batch());
  const std::vector<uint64_t> kv_rows = RowsHeld(kv, spec.batch());
  const std::vector<uint64_t> q_bytes = QShardBytes(spec, q);
  const std::vector<uint64_t> partial_bytes = PartialBytes(spec, q);
  std::vector<Turning> turning(workload.ranks);
  for (int rank = 0; rank < workload.ranks; ++rank) {
    Turning& own = turning[rank];
    own.tile_queries = q_rows[rank];
    uint64_t visiting = 0, computed = 0, returning = 0;
    for (int other = 0; other < workload.ranks; ++other) {
      if (workload.Needs(rank, other)) {
        own.tile_keys = kv_rows[rank];
        own.tile_queries = std::max(own.tile_queries, q_rows[other]);
      }
      if (other == rank) continue;
      if (Passes(workload, other, rank)) visiting = std::max(visiting, q_bytes[other]);
      if (workload.Needs(rank, other)) computed = std::max(computed, partial_bytes[other]);
      if (workload.Needs(other, rank)) returning = partial_bytes[rank];
    }
    own.held = SaturatingAdd(SaturatingMultiply(2, SaturatingAdd(visiting, computed)), returning);
  }
  return turning;
}

}  // namespace

uint64_t SaturatingAdd(uint64_t a, uint64_t b) {
  uint64_t sum = 0;
  return __builtin_add_overflow(a, b, &sum) ? std::numeric_limits<uint64_t>::max() : sum;
}

uint64_t SaturatingMultiply(uint64_t a, uint64_t b) {
  uint64_t product = 0;
  return __builtin_mul_overflow(a, b, &product) ? std::numeric_limits<uint64_t>::max() : product;
}

std::vector<uint64_t> RowsHeld(const SequenceLayout& layout, int64_t batch) {
  std::vector<uint64_t> rows(layout.ranks());
  for (int rank = 0; rank < layout.ranks(); ++rank) {
    if (layout.shared()) {
      rows[rank] = SaturatingMultiply(layout.RowsOf(rank, 0), batch);
    } else {
      for (int64_t b = 0; b < batch; ++b) rows[rank] += layout.RowsOf(rank, b);
    }
  }
  return rows;
}

std::vector<uint64_t> KvShardBytes(const v1::AttentionSpec& spec, const SequenceLayout& kv) {
  const uint64_t row_bytes = SaturatingMultiply(
      spec.kv_heads(), (spec.head_dim() + ValueDim(spec)) * ElementBytes(spec.dtype()));
  return BytesHeld(kv, spec.batch(), row_bytes);
}

std::vector<uint64_t> QShardBytes(const v1::AttentionSpec& spec, const SequenceLayout& q) {
  return BytesHeld(
      q, spec.batch(),
      SaturatingMultiply(spec.q_heads(), spec.head_dim() * ElementBytes(spec.dtype())));
}

std::vector<uint64_t> PartialBytes(const v1::AttentionSpec& spec, const SequenceLayout& q) {
  return BytesHeld(
      q, spec.batch(),
      SaturatingMultiply(spec.q_heads(), (ValueDim(spec) + 1) * LseElementBytes(spec.dtype())));
}

std::vector<uint64_t> GradientBytes(const v1::AttentionSpec& spec, const SequenceLayout& kv) {
  return BytesHeld(kv, spec.batch(),
                   SaturatingMultiply(spec.kv_heads(), (spec.head_dim() + ValueDim(spec)) *
                                                           LseElementBytes(spec.dtype())));
}

uint64_t SinkGradientBytes(const v1::AttentionSpec& spec) {
  return spec.sink_logits() ? spec.q_heads() * LseElementBytes(spec.dtype()) : 0;
}

std::vector<uint64_t> ExtraBytes(const v1::AttentionSpec& spec, const SequenceLayout& q) {
  uint64_t per_head = 0;
  if (spec.alibi_slopes()) per_head += ShapeOf(v1::TENSOR_ID_ALIBI_SLOPES, spec).bytes();
  if (spec.sink_logits()) per_head += ShapeOf(v1::TENSOR_ID_SINK_LOGITS, spec).bytes();
  std::vector<uint64_t> bytes(q.ranks(), per_head);
  if (!spec.has_bias()) return bytes;
  const TensorShape bias = ShapeOf(v1::TENSOR_ID_BIAS, spec);
  const uint64_t row_bytes = SaturatingMultiply(bias.planes_per_batch, bias.row_bytes);
  const std::vector<uint64_t> rows = RowsHeld(q, q.shared() ? bias.batch : spec.batch());
  for (int rank = 0; rank < q.ranks(); ++rank)
    bytes[rank] = SaturatingAdd(bytes[rank], SaturatingMultiply(rows[rank], row_bytes));
  return bytes;
}

std::vector<uint64_t> PeakBytes(const v1::AttentionSpec& spec, const SequenceLayout& q,
                                const SequenceLayout& kv,
                                const std::vector<std::vector<Band>>& bands,
                                const Workload& workload, v1::RotateMethod rotate) {
  const uint64_t element = ElementBytes(spec.dtype());
  const uint64_t accumulated = LseElementBytes(spec.dtype());
  const uint64_t d = spec.head_dim();
  const uint64_t dv = ValueDim(spec);
  const uint64_t padded = std::max(d, dv);
  // The kernel is our own, or LibTorch's.
  const bool own = spec.dtype() != v1::DTYPE_F64;
  const bool pads = d != dv && !own;
  // Bytes that one query row of the rank's takes, one of a tile, and one key row of a tile.
  const uint64_t q_row_bytes = SaturatingMultiply(
      spec.q_heads(), (d + dv) * element + accumulated + (dv + 1) * accumulated + (own ? 5 : 0));
  const bool pass_q = rotate == v1::ROTATE_METHOD_PASS_Q;
  const uint64_t tile_query_bytes = SaturatingMultiply(
      spec.q_heads(), (pads ? padded * element : 0) +
                          (own ? (pass_q ? accumulated : 0) : padded * element + accumulated));
  const uint64_t tile_key_bytes =
      pads ? SaturatingMultiply(spec.kv_heads(), 2 * padded * element) : 0;
  const bool adds = spec.has_bias() || spec.alibi_slopes();
  const uint64_t mask_bytes = !own && (adds || NeedsDenseMask(bands))
                                  ? kMaskedTileQueries * kMaskedTileKeys * accumulated
                                  : 0;

  const std::vector<uint64_t> q_rows = RowsHeld(q, spec.batch());
  const std::vector<uint64_t> kv_bytes = KvShardBytes(spec, kv);
  const std::vector<uint64_t> extra_bytes = ExtraBytes(spec, q);
  const std::vector<Turning> turning =
      rotate == v1::ROTATE_METHOD_PASS_Q
          ? TurningQ(spec, q, kv, workload)
          : TurningKv(spec, q, kv, workload, rotate == v1::ROTATE_METHOD_ALL_GATHER);
  std::vector<uint64_t> peak(workload.ranks);
  for (int rank = 0; rank < workload.ranks; ++rank) {
    const auto& [held, tile_queries, tile_keys] = turning[rank];
    peak[rank] = SaturatingMultiply(q_rows[rank], q_row_bytes);
    for (uint64_t part : {kv_bytes[rank], extra_bytes[rank], held,
                          SaturatingMultiply(tile_queries, tile_query_bytes),
                          SaturatingMultiply(tile_keys, tile_key_bytes),
                          own && tile_keys > 0 ? LaidOutBytes(spec, tile_keys) : 0, mask_bytes}) {
      peak[rank] = SaturatingAdd(peak[rank], part);
    }
  }
  return peak;
}

std::vector<uint64_t> BackwardPeakBytes(const v1::AttentionSpec& spec, const SequenceLayout& q,
                                        const SequenceLayout& kv, const Workload& workload,
                                        v1::RotateMethod rotate, Pass pass) {
  const uint64_t element = ElementBytes(spec.dtype());
  const uint64_t accumulated = LseElementBytes(spec.dtype());
  const uint64_t d = spec.head_dim();
  const uint64_t dv = ValueDim(spec);
  const bool narrow = element < accumulated;
  // Bytes that one query row of the rank's takes: what comes and goes, then what is summed.
  const uint64_t q_row_bytes = SaturatingMultiply(
      spec.q_heads(), 2 * (d + dv) * element + (pass.d_lse ? 2 : 1) * accumulated +
                          (narrow ? d * accumulated : 0) +
                          (spec.sink_logits() ? 7 : 1) * accumulated);
  const uint64_t per_head = SaturatingMultiply(workload.ranks + 3, SinkGradientBytes(spec));

  const std::vector<uint64_t> q_rows = RowsHeld(q, spec.batch());
  const std::vector<uint64_t> kv_bytes = KvShardBytes(spec, kv);
  const std::vector<uint64_t> gradient_bytes = GradientBytes(spec, kv);
  const std::vector<uint64_t> extra_bytes = ExtraBytes(spec, q);
  const std::vector<Turning> turning =
      TurningKv(spec, q, kv, workload, rotate == v1::ROTATE_METHOD_ALL_GATHER);
  std::vector<uint64_t> peak(workload.ranks);
  for (int rank = 0; rank < workload.ranks; ++rank) {
    uint64_t computed = 0, received = 0;
    for (int other = 0; other < workload.ranks; ++other) {
      if (other == rank) continue;
      if (workload.Needs(rank, other)) computed = std::max(computed, gradient_bytes[other]);
      if (workload.Needs(other, rank)) received = gradient_bytes[rank];
    }
    peak[rank] = SaturatingMultiply(q_rows[rank], q_row_bytes);
    for (uint64_t part :
         {SaturatingMultiply(2, kv_bytes[rank]), narrow ? gradient_bytes[rank] : 0,
          extra_bytes[rank], per_head, turning[rank].held, SaturatingMultiply(2, computed),
          received, SaturatingMultiply(3 * std::min(kDeltaRows, q_rows[rank]), dv * accumulated)}) {
      peak[rank] = SaturatingAdd(peak[rank], part);
    }
  }
  return peak;
}

}  // namespace ringserve
