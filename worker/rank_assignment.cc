#include "worker/rank_assignment.h"

#include <algorithm>
#include <cassert>
#include <numeric>

namespace ringserve {

uint64_t RankAssignment::bias_bytes() const {
  return std::accumulate(bias_blocks.begin(), bias_blocks.end(), uint64_t{0});
}

uint64_t RankAssignment::BytesOf(v1::TensorId tensor) const {
  switch (tensor) {
    case v1::TENSOR_ID_Q:
    case v1::TENSOR_ID_D_Q:
      return q_bytes;
    case v1::TENSOR_ID_K:
    case v1::TENSOR_ID_D_K:
      return k_bytes;
    case v1::TENSOR_ID_V:
    case v1::TENSOR_ID_D_V:
      return v_bytes;
    case v1::TENSOR_ID_OUT:
    case v1::TENSOR_ID_D_OUT:
      return out_bytes;
    case v1::TENSOR_ID_LSE:
    case v1::TENSOR_ID_D_LSE:
      return lse_bytes;
    case v1::TENSOR_ID_BIAS:
      return bias_bytes();
    case v1::TENSOR_ID_ALIBI_SLOPES:
      return slope_bytes;
    case v1::TENSOR_ID_SINK_LOGITS:
    case v1::TENSOR_ID_D_SINK_LOGITS:
      return sink_bytes;
    default:
      assert(false);
      return 0;
  }
}

std::vector<v1::TensorId> RankAssignment::Results() const {
  std::vector<v1::TensorId> results = ResultsOf(spec, pass, return_lse);
  if (plan.rank != 0)
    results.erase(std::remove_if(results.begin(), results.end(), IsPerHead), results.end());
  return results;
}

std::vector<v1::TensorId> RankAssignment::Held() const {
  std::vector<v1::TensorId> held = UploadsOf(spec, pass);
  for (const v1::TensorId result : Results()) held.push_back(result);
  if (!pass.backward && !return_lse) held.push_back(v1::TENSOR_ID_LSE);
  return held;
}

ChunkSequence RankAssignment::ExpectedInput() const {
  ChunkSequence input;
  for (const v1::TensorId tensor : UploadsOf(spec, pass)) {
    if (tensor != v1::TENSOR_ID_BIAS && BytesOf(tensor) > 0) input.Expect(tensor, BytesOf(tensor));
  }
  std::vector<uint64_t> blocks = bias_blocks;
  // What every batch row has for itself comes in one piece.
  if (spec.bias().per_batch()) blocks = {bias_bytes()};
  blocks.erase(std::remove(blocks.begin(), blocks.end(), uint64_t{0}), blocks.end());
  if (!blocks.empty()) input.ExpectBlocks(v1::TENSOR_ID_BIAS, blocks);
  return input;
}

}  // namespace ringserve
