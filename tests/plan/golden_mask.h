// Masks of the PyTorch fixtures as bands, and layouts of their balancers (tests/golden/README.md).
#pragma once

#include <algorithm>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "proto/band.h"
#include "server/plan/layout.h"
#include "server/plan/ptrr.h"

namespace ringserve::test {

inline std::vector<Band> DocumentBands(const std::vector<int64_t>& lengths, bool causal) {
  std::vector<Band> bands;
  int64_t begin = 0;
  for (const int64_t length : lengths) {
    Band band{begin, begin + length, begin, begin + length};
    if (causal) band.hi = 0;
    if (length > 0) bands.push_back(Normalized(band));
    begin += length;
  }
  return bands;
}

inline std::vector<Band> BitmapBands(const nlohmann::json& mask, const nlohmann::json& rows,
                                     int64_t length) {
  const int64_t q_block = mask.at("q_block"), k_block = mask.at("k_block");
  std::vector<Band> bands;
  for (int64_t q = 0; q < static_cast<int64_t>(rows.size()); ++q) {
    const std::string row = rows[q];
    for (int64_t k = 0; k < static_cast<int64_t>(row.size()); ++k) {
      if (row[k] == '0') continue;
      Band band{q * q_block, std::min(length, (q + 1) * q_block), k * k_block,
                std::min(length, (k + 1) * k_block)};
      if (row[k] == '2') band.hi = band.k_begin - band.q_begin;
      bands.push_back(Normalized(band));
    }
  }
  return bands;
}

// Of one batch row of a square mask.
inline std::vector<Band> GoldenBands(const nlohmann::json& mask, int64_t length, size_t batch_row) {
  const auto of_row = [&](const char* field) {
    const nlohmann::json& rows = mask.at(field);
    return rows[rows.size() == 1 ? 0 : batch_row];
  };
  const std::string kind = mask.at("kind");
  Band all{0, length, 0, length};
  std::vector<Band> bands;
  if (kind == "full") {
    bands = {all};
  } else if (kind == "causal") {
    all.hi = 0;
    bands = {all};
  } else if (kind == "sliding_window") {
    const int64_t left = mask.at("left"), right = mask.at("right");
    if (left >= 0) all.lo = -left;
    if (right >= 0) all.hi = right;
    bands = {all};
  } else if (kind == "prefix_lm") {
    const int64_t prefix = of_row("prefix");
    bands = {{0, length, 0, prefix}, {0, length, prefix, length, Band::kUnboundedLo, 0}};
  } else if (kind == "document") {
    bands = DocumentBands(of_row("docs").get<std::vector<int64_t>>(), mask.at("causal"));
  } else if (kind == "block_bitmap") {
    bands = BitmapBands(mask, of_row("rows"), length);
  } else {
    throw std::runtime_error("no bands for mask " + kind);
  }
  for (Band& band : bands) band = Normalized(band);
  std::erase_if(bands, [](const Band& band) { return Empty(band); });
  std::sort(bands.begin(), bands.end(), [](const Band& a, const Band& b) {
    return std::tie(a.q_begin, a.k_begin) < std::tie(b.q_begin, b.k_begin);
  });
  return bands;
}

inline RowLayout GoldenPtrrRow(const nlohmann::json& balancer, int ranks, size_t batch_row) {
  const int64_t length = balancer.at("seq_length"), block = balancer.at("block_size");
  const std::vector<Band> bands = GoldenBands(balancer.at("mask"), length, batch_row);
  return PtrrRow(BlockCounts(bands, length, block), length, block, ranks);
}

inline SequenceLayout GoldenLayout(const nlohmann::json& balancer, int64_t length, int ranks) {
  const std::string kind = balancer.at("kind");
  if (kind == "none") return ContiguousLayout(length, ranks);
  if (kind == "head_tail") return HeadTailLayout(length, ranks);
  SequenceLayout layout;
  if (kind == "per_document") {
    for (const nlohmann::json& docs : balancer.at("docs"))
      layout.rows.push_back(PerDocumentRow(docs.get<std::vector<int64_t>>(), length, ranks));
  } else {
    for (size_t b = 0; b < balancer.at("batch"); ++b)
      layout.rows.push_back(GoldenPtrrRow(balancer, ranks, b));
  }
  return layout;
}

}  // namespace ringserve::test
