// Recognises a dense boolean mask as bands: causal, window, document, padding and block masks, and
// what else has edges that run straight down or along a diagonal. Pure.
#pragma once

#include <cstdint>
#include <optional>

#include "ringserve/v1/attention.pb.h"

namespace ringserve {

// visible[i * row_stride + j]: whether query i sees key j, 0 or 1. Exact: the mask returned shows
// these keys and no others. Nothing: more than `most` bands would be needed, or nobody sees
// anything.
std::optional<v1::Mask> RecogniseBands(const uint8_t* visible, int64_t q_len, int64_t kv_len,
                                       int64_t row_stride, int64_t most);

}  // namespace ringserve
