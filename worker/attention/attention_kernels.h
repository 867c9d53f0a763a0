// The two attention kernels that LibTorch has for GPUs, as they are: what they take, and what they
// say of a row without a weight. device_block.h makes up for both.
#pragma once

#include <utility>

#include <ATen/ATen.h>

namespace ringserve {

class AttentionKernels {
 public:
  virtual ~AttentionKernels() = default;

  // Both: q [B, Hq, Sq, D], k [B, Hkv, Sk, D] and v [B, Hkv, Sk, Dv] of one type on one device, at
  // least one of each; their rows begin on 16 bytes, and numbers follow each other in a row. Return
  // out [B, Hq, Sq, Dv] of that type, any strides, and the natural log of the sums of the weights,
  // fp32. On the device's present stream; throw what LibTorch throws.

  // at::_scaled_dot_product_flash_attention: fp16 or bf16, compute capability 8.0 or more; D = Dv,
  // a multiple of 8, at most 256; Hq a multiple of Hkv. `causal`: the diagonal ends in the lower
  // right corner. lse [B, Hq, Sq]. A row whose weights sum up to 0 has lse +inf; where they sum up
  // to NaN lse is anything, and out is NaN.
  virtual std::pair<at::Tensor, at::Tensor> Flash(const at::Tensor& q, const at::Tensor& k,
                                                  const at::Tensor& v, bool causal,
                                                  double scale) const = 0;

  // at::_scaled_dot_product_efficient_attention: fp32, fp16, or bf16 from compute capability 8.0
  // on; D and Dv multiples of 8; Hq = Hkv; less than 2^31 from one head of q, k or v to the last,
  // and from one row of a head to the last, in numbers. `causal`: the diagonal starts in the upper
  // left corner. `bias` is undefined, or of the type of q, [B, Hq, Sq, Sk], its rows on 16 bytes;
  // any strides but the last, 0 included; it is added to the scaled scores, and so are -inf and
  // NaN. The scores are then multiplied by log2(e): beyond 2e38 they overflow. lse [B, Hq, Sq or
  // more]: what is beyond is to be cut off. A row of which all scores are -inf has lse 0, as one
  // has with a single score of 0, and any out; NaN stays NaN.
  virtual std::pair<at::Tensor, at::Tensor> Efficient(const at::Tensor& q, const at::Tensor& k,
                                                      const at::Tensor& v, const at::Tensor& bias,
                                                      bool causal, double scale) const = 0;
};

}  // namespace ringserve
