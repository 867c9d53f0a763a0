// Processing-time based round-robin: blocks of queries, sorted by what they cost, dealt to the
// ranks. Takes any mask that is bands. Pure integers; refuses nothing: callers bound the number of
// blocks.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "proto/band.h"
#include "server/plan/layout.h"

namespace ringserve {

// Visible pairs of each block of `block` queries; the last block may be short.
std::vector<uint64_t> BlockPairs(const std::vector<Band>& bands, int64_t q_len, int64_t block);

// As PyTorch's BlockMask counts: blocks of `block` keys in which a block of queries sees anything,
// seen whole or in part (kv_num_blocks + full_kv_num_blocks).
std::vector<uint64_t> BlockCounts(const std::vector<Band>& bands, int64_t q_len, int64_t block);

// By group: the tasks it gets, ascending. PyTorch's _PTRRLoadBalancer.ptrr_scheduling where
// `groups` divides the number of tasks: a stable descending sort, dealt there and back again.
// Elsewhere the last round is short; the last task (the one that may be a short block) goes to a
// group of those that have one more, so that neither tasks nor positions differ by more than one
// task. With weights: each group gets tasks in proportion (differing from its share by less than
// one), the costliest first to the group with the least work for its weight.
std::vector<std::vector<int64_t>> PtrrSchedule(std::span<const uint64_t> work, int groups,
                                               const Weights& weights = {});

// The positions of one batch row in the blocks that PtrrSchedule gives each rank.
RowLayout PtrrRow(std::span<const uint64_t> work, int64_t length, int64_t block, int ranks,
                  const Weights& weights = {});

// The block that is taken where nobody names one: 128, or, where that leaves a rank less than 16
// blocks, the largest power of two that leaves it so many; larger where there would be more than
// 2^17 blocks in all.
int64_t DefaultPtrrBlock(int64_t length, int ranks);

}  // namespace ringserve
