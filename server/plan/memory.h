// What a plan needs of its workers' memory, in bytes. Sums that exceed 64 bits are reported as the
// largest number: no limit admits them.
#pragma once

#include <cstdint>
#include <vector>

#include "proto/band.h"
#include "proto/tensor_shape.h"
#include "ringserve/v1/attention.pb.h"
#include "server/plan/layout.h"
#include "server/plan/workload.h"

namespace ringserve {

// The most keys of a batch row that the workers' kernel lays out at once.
inline constexpr int64_t kKernelKeysLaidOut = 2048;

uint64_t SaturatingAdd(uint64_t a, uint64_t b);
uint64_t SaturatingMultiply(uint64_t a, uint64_t b);

// By rank: rows held, summed over all batch rows.
std::vector<uint64_t> RowsHeld(const SequenceLayout& layout, int64_t batch);

// By rank: bytes of its K and V shard, which is what one transfer moves.
std::vector<uint64_t> KvShardBytes(const v1::AttentionSpec& spec, const SequenceLayout& kv);

// By rank, pass-Q: bytes of its Q shard, which is what one transfer moves, and of a partial of its
// queries.
std::vector<uint64_t> QShardBytes(const v1::AttentionSpec& spec, const SequenceLayout& q);
std::vector<uint64_t> PartialBytes(const v1::AttentionSpec& spec, const SequenceLayout& q);

// By owner, backward: bytes of the gradients of its K and V shard, which are fp32 (F64: fp64). And
// what every rank but 0 sends of those of the sink logits; 0 without.
std::vector<uint64_t> GradientBytes(const v1::AttentionSpec& spec, const SequenceLayout& kv);
uint64_t SinkGradientBytes(const v1::AttentionSpec& spec);

// By rank: bytes of what it holds of a bias, ALiBi slopes and sink logits: the bias of its queries
// beside all keys (one copy for each batch row that has a layout of its own), and all of the
// others.
std::vector<uint64_t> ExtraBytes(const v1::AttentionSpec& spec, const SequenceLayout& q);

// By rank, with e bytes per element, a per accumulated element (4; F64: 8), P = max(D, Dv), n and m
// the rank's query and key rows over all batch rows, M the most key rows of a shard it computes on,
// N the most query rows (n, but for pass-Q):
//
//   shards        n Hq D e + m Hkv (D + Dv) e
//   extras        see ExtraBytes
//   results       n Hq Dv e + n Hq a                      out and lse as they are sent
//   accumulators  n Hq (Dv + 1) a
//   receive       all-to-all: 2 x the largest shard that it receives; all-gather: all of them;
//                 pass-Q: 2 x the largest shard of Q, 2 x the largest partial of others' queries
//                 that it computes, 1 x n Hq (Dv + 1) a where others compute some of its own
//   kernel        F64:
//     padding     N Hq P e + 2 M Hkv P e, where D != Dv    copies of one tile's q, k and v
//     partial     N Hq (P e + a)                          what it returns for one tile
//     mask        kMaskedTileQueries x kMaskedTileKeys a  where a band has a lower diagonal,
//                                                         or the scores a bias or slopes
//                 F32, BF16, F16:
//     rows        5 n Hq (pass-Q: 4 N Hq besides)         totals, and at the end which saw nothing
//     layout      4 Hkv (D + Dv + 16) min(M + 64 B, 1024 B)  K and V as it multiplies them
//
// A tile has at most N queries and M keys. `spec` has value_dim filled in; for pass-Q, `workload`
// is MakePassQWorkload's.
std::vector<uint64_t> PeakBytes(const v1::AttentionSpec& spec, const SequenceLayout& q,
                                const SequenceLayout& kv,
                                const std::vector<std::vector<Band>>& bands,
                                const Workload& workload, v1::RotateMethod rotate);

// By rank, of the backward pass (worker/attention/backward_ring.h), with the letters above, W the
// number of ranks and g the rows whose deltas it takes at once (at most 1,024):
//
//   shards        n Hq (D + Dv) e + n Hq a + m Hkv (D + Dv) e    q, out, lse, k and v
//   gradients     n Hq Dv e (+ n Hq a)                           d_out (and d_lse, where given)
//   extras        see ExtraBytes
//   results       n Hq D e + m Hkv (D + Dv) e                    d_q, d_k and d_v
//   sums          n Hq D a + m Hkv (D + Dv) a, where e < a       what these are rounded from
//   rows          n Hq a + 3 g Dv a                              deltas
//   sink logits   6 n Hq a + (W + 3) Hq a, where there are any   lse of all scores; gradients
//   receive       see above
//   travelling    2 x the largest GradientBytes of another rank's keys that it reads, and 1 x its
//                 own where others read its keys
std::vector<uint64_t> BackwardPeakBytes(const v1::AttentionSpec& spec, const SequenceLayout& q,
                                        const SequenceLayout& kv, const Workload& workload,
                                        v1::RotateMethod rotate, Pass pass);

}  // namespace ringserve
