// The spec that tests of masks and layouts need: lengths alone matter.
#pragma once

#include <cstdint>

#include "ringserve/v1/attention.pb.h"

namespace ringserve::test {

// One head of one number, fp32, no mask.
inline v1::AttentionSpec OneHeadSpec(int64_t batch, int64_t q_len, int64_t kv_len) {
  v1::AttentionSpec spec;
  spec.set_batch(batch);
  spec.set_q_heads(1);
  spec.set_kv_heads(1);
  spec.set_q_len(q_len);
  spec.set_kv_len(kv_len);
  spec.set_head_dim(1);
  spec.set_dtype(v1::DTYPE_F32);
  return spec;
}

}  // namespace ringserve::test
