// A request that a load generator sends again and again: made from a seed, with the rows of the
// right answer that it is checked by.
#pragma once

#include <cstddef>
#include <cstdint>
#include <random>
#include <span>
#include <vector>

#include "client/ringctl/reference_attention.h"
#include "client/ringctl/verify.h"
#include "ringserve/client.h"

namespace ringserve {

struct LoadCase {
  v1::AttendHeader header;
  std::vector<std::byte> q, k, v;
  AttendInputs extras;  // bias, slopes and sink logits alone, which outlive this
  // Of the right answer; empty: not computed.
  std::vector<RowId> rows;
  std::vector<ReferenceRow> right;

  AttendInputs inputs() const {
    return {q, k, v, extras.bias, extras.alibi_slopes, extras.sink_logits};
  }
  // Whether Check can find fault with anything.
  bool comparable() const;
  Verification Check(std::span<const std::byte> out, std::span<const std::byte> lse) const {
    return CompareRows(header.spec(), {out, lse, header.options().lse_without_sinks()}, rows,
                       right);
  }
};

// Normal random numbers, which are below 16 in magnitude, so that every type holds them.
void FillNormal(v1::DType dtype, std::mt19937_64& random, std::span<std::byte> tensor);

// Requests of many kinds: all dtypes and layouts; self- and cross-attention; full, causal and
// bottom-right; 1 to some thousand tokens, few as likely as many; grouped heads, several batch
// rows, values of another dim. Every second one asks for `workers` workers, the others leave it to
// the planner. The same seed gives the same.
std::vector<v1::AttendHeader> MixedHeaders(int count, int workers, uint64_t seed);

// INVALID_ARGUMENT: a spec's sizes, or all inputs, and the largest answer `concurrency` times, take
// more than `available_bytes` (0: not known).
absl::Status CheckMemory(std::span<const v1::AttendHeader> headers, int concurrency,
                         uint64_t available_bytes);

// Normal random numbers in q, k and v; what the spec has of extras is in `extras`. `header` asks
// for lse. INVALID_ARGUMENT: the spec's sizes.
absl::StatusOr<LoadCase> MakeLoadCase(const v1::AttendHeader& header, uint64_t seed,
                                      const AttendInputs& extras = {});

// Computes `rows` and `right`: the first and last queries, those where segments of up to
// kMostWorkers workers are likely to meet, and others by chance, at least kMinVerifiedRows of each
// batch row and head.
void AddRightRows(LoadCase& load, uint64_t seed);

}  // namespace ringserve
