// Tiles on a device that has LibTorch's attention kernels: by them what they take, the rest by
// products (dense_products.h). Shared by all devices: the kernels themselves are behind
// AttentionKernels. Accumulators are closed, fp32 (fp64 numbers: fp64): where a kernel rounds what
// it returns to 16 bits, it is widened before it is merged.
#pragma once

#include <cstdint>
#include <memory>

#include "worker/attention/attention_kernels.h"
#include "worker/attention/block.h"

namespace ringserve {

enum class AttentionKernel { kFlash, kEfficient, kProducts };

// The best for numbers of `type`, these head dims and `capability` (10 major + minor) of the
// device. `masked`: with a dense mask, or terms.
AttentionKernel KernelFor(at::ScalarType type, int64_t head_dim, int64_t value_dim, bool masked,
                          int capability);

// What bounds the scratch, in numbers: at most about ten times `numbers` of 4 bytes (fp64: 8) are
// held at once, or what one key head and one piece take, whichever is more.
struct PieceLimits {
  int64_t numbers = int64_t{1} << 24;
  int64_t queries = 1024;  // of a piece there may be as many, whatever `numbers` says
  int64_t masked_queries = 1024, masked_keys = 2048;
  int64_t whole_keys = 256;  // see PieceRules
};

class DeviceBlock : public Block {
 public:
  DeviceBlock(std::unique_ptr<const AttentionKernels> kernels, int capability,
              const PieceLimits& limits = {});

  bool KeepsOpen(at::ScalarType) const override { return false; }

  // Waits for the device once or more where the efficient kernel is used: it does not tell a row
  // without a weight from others, so that scores must be known not to overflow.
  void Accumulate(const Partial& into, const at::Tensor& q, const at::Tensor& k,
                  const at::Tensor& v, const Tile& tile, double scale,
                  const ScoreTerms& terms) const override;

  // By products.
  void AccumulateGradients(const Gradients& into, const AnsweredQueries& queries,
                           const at::Tensor& k, const at::Tensor& v, const Tile& tile, double scale,
                           const ScoreTerms& terms) const override;

 private:
  const std::unique_ptr<const AttentionKernels> kernels_;
  const int capability_;
  const PieceLimits limits_;
};

}  // namespace ringserve
