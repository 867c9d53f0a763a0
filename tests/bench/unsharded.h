// What ringserve is measured against: causal attention by LibTorch's kernel, in this process, on
// all its threads; and the tensors on which both are measured.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "ringserve/v1/attention.pb.h"

namespace ringserve::bench {

// Largest absolute errors.
struct Errors {
  double out = 0, lse = 0;
};

class Unsharded {
 public:
  // Normal random numbers of [1, heads, length, dim]; `dtype` is F32, F64, BF16 or F16.
  Unsharded(int64_t q_heads, int64_t kv_heads, int64_t length, int64_t dim, v1::DType dtype);
  ~Unsharded();

  std::span<const std::byte> q() const;
  std::span<const std::byte> k() const;
  std::span<const std::byte> v() const;

  // Computes out and lse once; how many seconds that took.
  double Run();

  // Against fp64 attention of some rows of every head. The first: of the last Run.
  Errors OwnErrors() const;
  Errors ErrorsOf(std::span<const std::byte> out, std::span<const std::byte> lse) const;

 private:
  struct Tensors;
  const std::unique_ptr<Tensors> tensors_;
};

int Threads();                   // of LibTorch in this process
std::string KernelCapability();  // the vector instructions that LibTorch uses

}  // namespace ringserve::bench
