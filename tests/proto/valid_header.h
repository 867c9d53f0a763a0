// A header that passes validation, and what tests do to it.
#pragma once

#include <functional>
#include <limits>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "proto/validate.h"

namespace ringserve {

inline constexpr int64_t kMin = std::numeric_limits<int64_t>::min();
inline constexpr int64_t kMax = std::numeric_limits<int64_t>::max();

inline v1::AttendHeader ValidHeader() {
  v1::AttendHeader header;
  v1::AttentionSpec& spec = *header.mutable_spec();
  spec.set_batch(3);
  spec.set_q_heads(8);
  spec.set_kv_heads(2);
  spec.set_q_len(20);
  spec.set_kv_len(30);
  spec.set_head_dim(16);
  spec.set_dtype(v1::DTYPE_F32);
  return header;
}

struct Case {
  std::function<void(v1::AttendHeader&)> change;
  const char* says;
};

// The first mask.
inline v1::Mask& Mask(v1::AttendHeader& header) {
  return header.spec().masks().empty() ? *header.mutable_spec()->add_masks()
                                       : *header.mutable_spec()->mutable_masks(0);
}

// Each change alone makes a valid header one that is refused with this code and these words.
inline void ExpectAll(const std::vector<Case>& cases, absl::StatusCode code) {
  for (const Case& wrong : cases) {
    v1::AttendHeader header = ValidHeader();
    wrong.change(header);
    const absl::Status status = ValidateHeader(header);
    EXPECT_EQ(status.code(), code) << wrong.says << "\nbut: " << status;
    EXPECT_THAT(std::string(status.message()), ::testing::HasSubstr(wrong.says));
  }
}

inline void ExpectInvalid(const std::vector<Case>& cases) {
  ExpectAll(cases, absl::StatusCode::kInvalidArgument);
}

}  // namespace ringserve
