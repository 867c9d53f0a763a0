// LibTorch's kernels for GPUs as they are told of in worker/attention/attention_kernels.h, on the
// processor: what the real ones refuse, or would read from a wrong address, is refused here, and
// what they say of a row without a weight, and beyond the last row, is said here.
#pragma once

#include <cstdint>

#include "worker/attention/attention_kernels.h"

namespace ringserve::test {

struct KernelCalls {
  int64_t flash = 0, efficient = 0;
};

class FakeAttentionKernels : public AttentionKernels {
 public:
  // Of a device of this compute capability, 10 major + minor. Counts what is called in `calls`.
  explicit FakeAttentionKernels(int capability, KernelCalls* calls = nullptr)
      : capability_(capability), calls_(calls) {}

  std::pair<at::Tensor, at::Tensor> Flash(const at::Tensor& q, const at::Tensor& k,
                                          const at::Tensor& v, bool causal,
                                          double scale) const override;
  std::pair<at::Tensor, at::Tensor> Efficient(const at::Tensor& q, const at::Tensor& k,
                                              const at::Tensor& v, const at::Tensor& bias,
                                              bool causal, double scale) const override;

 private:
  const int capability_;
  KernelCalls* const calls_;
};

}  // namespace ringserve::test
