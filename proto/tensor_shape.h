// How a tensor's bytes lie in memory and on the wire, whatever its layout: `planes` blocks, each of
// `rows` sequence positions of `row_bytes` bytes. [B,H,S,D] has B*H planes, [B,S,H,D] has B. A bias
// has the keys of a query as its row; what has one number for each head is one plane of such rows.
//
// This is the one place that knows what the two layouts mean for bytes.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "ringserve/v1/attention.pb.h"

namespace ringserve {

struct TensorShape {
  int64_t batch = 0;             // B; of a bias, or what is per head, it may be 1
  int64_t planes_per_batch = 0;  // H for BHSD and lse, 1 for BSHD
  int64_t rows = 0;              // sequence positions
  int64_t row_bytes = 0;         // bytes of one position in one plane

  uint64_t bytes() const {
    return static_cast<uint64_t>(batch) * planes_per_batch * rows * row_bytes;
  }
  friend bool operator==(const TensorShape&, const TensorShape&) = default;
};

// Bytes of one element: 4, 8, 2, 2; 0 for DTYPE_UNSPECIFIED.
int64_t ElementBytes(v1::DType dtype);

// Bytes of one lse element: 8 for F64, else 4.
int64_t LseElementBytes(v1::DType dtype);

// Dv: value_dim, or head_dim where value_dim is 0.
int64_t ValueDim(const v1::AttentionSpec& spec);

// scale, or 1 / sqrt(head_dim) where it is absent.
double Scale(const v1::AttentionSpec& spec);

// The whole tensor of a request. `spec` is valid (see ValidateHeader); `tensor` is one that the
// spec has, or its gradient.
TensorShape ShapeOf(v1::TensorId tensor, const v1::AttentionSpec& spec);

// What a request is of: Attend, or AttendBackward.
struct Pass {
  bool backward = false;
  bool d_lse = false;  // backward: the gradient of lse is uploaded
};

// What a request of `spec` uploads, and what it is answered.
std::vector<v1::TensorId> UploadsOf(const v1::AttentionSpec& spec, Pass pass = {});
std::vector<v1::TensorId> ResultsOf(const v1::AttentionSpec& spec, Pass pass, bool return_lse);

// Whether the rows of `tensor` are keys; whether it has one number for each head and no rows.
bool IsOfKeys(v1::TensorId tensor);
bool IsPerHead(v1::TensorId tensor);

// Whether the scores of a pair depend on where in the request its query and key are.
bool ScoresByPosition(const v1::AttentionSpec& spec);

// "q", "k", "v", "out", "lse", "bias", ...; "tensor 99" for a number without a name.
std::string TensorName(v1::TensorId tensor);

// True for BHSD (or unspecified).
bool IsHeadMajor(const v1::AttentionSpec& spec);

}  // namespace ringserve
