// The masked cases of the PyTorch fixtures as requests (tests/golden/README.md says what they
// mean).
#pragma once

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "ringserve/v1/attention.pb.h"

namespace ringserve::test {

// A row of `rows`, one for all batch rows or one for each.
inline const nlohmann::json& GoldenRow(const nlohmann::json& rows, int64_t batch_row) {
  return rows.at(rows.size() == 1 ? 0 : batch_row);
}

inline void SetGoldenWindow(const nlohmann::json& mask, v1::Mask& out) {
  out.mutable_window();
  if (mask.at("left") >= 0) out.mutable_window()->set_left(mask.at("left"));
  if (mask.at("right") >= 0) out.mutable_window()->set_right(mask.at("right"));
}

// Boundaries of packed sequences, or the lengths of padded ones.
inline void AddGoldenLengths(const nlohmann::json& boundaries,
                             google::protobuf::RepeatedField<int64_t>* lengths) {
  for (size_t i = 1; i < boundaries.size(); ++i) {
    lengths->Add(boundaries[i].get<int64_t>() - boundaries[i - 1].get<int64_t>());
  }
}

// Blocks of bits; where blocks are causal in themselves (value 2), a slice for each visible one.
inline void SetGoldenBlocks(const nlohmann::json& c, const nlohmann::json& rows, v1::Mask& out) {
  const int64_t q_block = c.at("mask").at("q_block"), k_block = c.at("mask").at("k_block");
  const int64_t q_len = c.at("Sq"), kv_len = c.at("Sk");
  bool causal_blocks = false;
  std::string bits;
  for (const std::string row : rows) {
    const size_t begin = bits.size();
    bits.resize(begin + (row.size() + 7) / 8);
    for (size_t k = 0; k < row.size(); ++k) {
      causal_blocks |= row[k] == '2';
      if (row[k] != '0') bits[begin + k / 8] |= static_cast<char>(1 << k % 8);
    }
  }
  if (!causal_blocks) {
    out.mutable_blocks()->set_q_block(q_block);
    out.mutable_blocks()->set_kv_block(k_block);
    out.mutable_blocks()->set_bits(bits);
    return;
  }
  for (size_t q = 0; q < rows.size(); ++q) {
    const std::string row = rows[q];
    for (size_t k = 0; k < row.size(); ++k) {
      if (row[k] == '0') continue;
      v1::Slice& slice = *out.add_slices();
      slice.set_q_begin(static_cast<int64_t>(q) * q_block);
      slice.set_q_end(std::min(q_len, slice.q_begin() + q_block));
      slice.set_k_begin(static_cast<int64_t>(k) * k_block);
      slice.set_k_end(std::min(kv_len, slice.k_begin() + k_block));
      if (row[k] == '2') slice.set_hi(slice.k_begin() - slice.q_begin());
    }
  }
}

// The four types of MagiAttention. One whose diagonals leave nothing is an empty slice: a mask
// without slices would be full.
inline void AddGoldenSlice(const nlohmann::json& slice, v1::Mask& out) {
  const int64_t q0 = slice[0], q1 = slice[1], k0 = slice[2], k1 = slice[3];
  const std::string type = slice[4];
  v1::Slice& added = *out.add_slices();
  if (type == "bi_causal" && k0 - q0 > k1 - q1) return;
  added.set_q_begin(q0);
  added.set_q_end(q1);
  added.set_k_begin(k0);
  added.set_k_end(k1);
  if (type == "causal" || type == "bi_causal") added.set_hi(k1 - q1);
  if (type == "inv_causal" || type == "bi_causal") added.set_lo(k0 - q0);
}

// Of one batch row. Aligned at the bottom right but where the fixtures are not: there `causal` says
// so, or queries are as many as keys.
inline v1::Mask GoldenMask(const nlohmann::json& c, int64_t batch_row) {
  const nlohmann::json& mask = c.at("mask");
  const std::string kind = mask.at("kind");
  v1::Mask out;
  out.set_bottom_right(kind != "causal" || mask.at("align") == "bottom_right");
  out.set_causal(kind == "causal" || kind == "prefix_lm" || mask.value("causal", false));
  if (kind == "sliding_window" || kind == "sink_window") SetGoldenWindow(mask, out);
  if (kind == "sink_window") out.set_sinks(mask.at("sinks"));
  if (kind == "prefix_lm") out.set_prefix(GoldenRow(mask.at("prefix"), batch_row));
  if (kind == "document") {
    for (const int64_t length : GoldenRow(mask.at("docs"), batch_row))
      out.mutable_documents()->add_q_lengths(length);
  } else if (kind == "varlen") {
    AddGoldenLengths(mask.at("cu_q"), out.mutable_documents()->mutable_q_lengths());
    AddGoldenLengths(mask.at("cu_k"), out.mutable_documents()->mutable_kv_lengths());
  } else if (kind == "padded") {
    out.mutable_documents()->add_q_lengths(GoldenRow(mask.at("q_lens"), batch_row));
    out.mutable_documents()->add_kv_lengths(GoldenRow(mask.at("k_lens"), batch_row));
  } else if (kind == "block_bitmap") {
    SetGoldenBlocks(c, GoldenRow(mask.at("rows"), batch_row), out);
  } else if (kind == "slices") {
    for (const nlohmann::json& slice : mask.at("slices")) AddGoldenSlice(slice, out);
  } else if (kind != "full" && kind != "causal" && kind != "sliding_window" &&
             kind != "sink_window" && kind != "prefix_lm") {
    throw std::runtime_error("no mask for " + kind);
  }
  return out;
}

inline v1::DType GoldenType(const std::string& name) {
  return name == "f32" ? v1::DTYPE_F32 : name == "bf16" ? v1::DTYPE_BF16 : v1::DTYPE_F16;
}

inline v1::AttentionSpec GoldenSpec(const nlohmann::json& c) {
  v1::AttentionSpec spec;
  spec.set_batch(c.at("B"));
  spec.set_q_heads(c.at("Hq"));
  spec.set_kv_heads(c.at("Hk"));
  spec.set_q_len(c.at("Sq"));
  spec.set_kv_len(c.at("Sk"));
  spec.set_head_dim(c.at("D"));
  spec.set_value_dim(c.at("Dv"));
  spec.set_dtype(GoldenType(c.at("dtype")));
  if (!c.at("scale").is_null()) spec.set_scale(c.at("scale"));
  if (!c.at("softcap").is_null()) spec.set_softcap(c.at("softcap"));
  spec.set_alibi_slopes(!c.at("alibi_slopes").is_null());
  for (int64_t b = 0; b < spec.batch(); ++b) *spec.add_masks() = GoldenMask(c, b);
  return spec;
}

}  // namespace ringserve::test
