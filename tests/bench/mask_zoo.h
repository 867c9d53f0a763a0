// The masks that ./dev bench --area and --auto measure.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "ringserve/v1/attention.pb.h"

namespace ringserve::bench {

struct NamedMask {
  std::string name;
  int64_t q_len = 0, kv_len = 0;
  v1::Mask mask;
};

// Causal first; then a window of 1,024 and 32 equal causal documents, over `length` positions.
std::vector<NamedMask> AreaMasks(int64_t length);

// Twelve kinds, over `length` positions (a multiple of 4,096).
std::vector<NamedMask> TwelveMasks(int64_t length);

// 4,096 positions, or a multiple: 30 short documents, 2 of medium length, a long one.
std::vector<int64_t> SkewedDocuments(int64_t length);

}  // namespace ringserve::bench
