// A device's block for tensors in the host's memory: copies them there, and what was added back. So
// the tests of blocks and rings hold for a GPU as they are, with another block.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <utility>

#include <ATen/ATen.h>

#include "worker/attention/block.h"

namespace ringserve::test {

class HostedBlock : public Block {
 public:
  // `make` is called once, when the block is first used: where there is no such device, tests may
  // still list it.
  HostedBlock(at::Device device, std::function<std::unique_ptr<Block>()> make)
      : device_(device), make_(std::move(make)) {}

  bool KeepsOpen(at::ScalarType type) const override { return block().KeepsOpen(type); }
  void Accumulate(const Partial& into, const at::Tensor& q, const at::Tensor& k,
                  const at::Tensor& v, const Tile& tile, double scale,
                  const ScoreTerms& terms) const override;
  void AccumulateGradients(const Gradients& into, const AnsweredQueries& queries,
                           const at::Tensor& k, const at::Tensor& v, const Tile& tile, double scale,
                           const ScoreTerms& terms) const override;

 private:
  const Block& block() const;
  at::Tensor There(const at::Tensor& tensor) const;  // undefined stays so
  ScoreTerms There(const ScoreTerms& terms) const;

  const at::Device device_;
  const std::function<std::unique_ptr<Block>()> make_;
  mutable std::once_flag made_;
  mutable std::unique_ptr<Block> block_;
};

}  // namespace ringserve::test
