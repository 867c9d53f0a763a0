#include "worker/attention/cuda_block.h"

#include <optional>
#include <utility>

#include <ATen/Context.h>
#include <ATen/cuda/CUDAContext.h>

#include "worker/attention/device_block.h"

namespace ringserve {
namespace {

class CudaKernels : public AttentionKernels {
 public:
  std::pair<at::Tensor, at::Tensor> Flash(const at::Tensor& q, const at::Tensor& k,
                                          const at::Tensor& v, bool causal,
                                          double scale) const override {
    auto result = at::_scaled_dot_product_flash_attention(q, k, v, /*dropout_p=*/0.0, causal,
                                                          /*return_debug_mask=*/false, scale);
    return {std::get<0>(result), std::get<1>(result)};
  }

  std::pair<at::Tensor, at::Tensor> Efficient(const at::Tensor& q, const at::Tensor& k,
                                              const at::Tensor& v, const at::Tensor& bias,
                                              bool causal, double scale) const override {
    const std::optional<at::Tensor> mask = bias.defined() ? std::optional(bias) : std::nullopt;
    auto result = at::_scaled_dot_product_efficient_attention(
        q, k, v, mask, /*compute_log_sumexp=*/true, /*dropout_p=*/0.0, causal, scale);
    return {std::get<0>(result), std::get<1>(result)};
  }
};

}  // namespace

std::unique_ptr<Block> MakeCudaBlock(int device) {
  at::globalContext().setAllowTF32CuBLAS(false);
  TORCH_CHECK(!at::globalContext().allowTF32CuBLAS(),
              "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE makes products of fp32 numbers inexact: unset it");
  const cudaDeviceProp& properties =
      *at::cuda::getDeviceProperties(static_cast<c10::DeviceIndex>(device));
  return std::make_unique<DeviceBlock>(std::make_unique<CudaKernels>(),
                                       10 * properties.major + properties.minor);
}

}  // namespace ringserve
