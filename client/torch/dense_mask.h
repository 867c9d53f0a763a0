// The attn_mask of a call, dense: as bands where it is made of them, else as the bytes of a bias.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include <ATen/core/Tensor.h>

#include "absl/status/statusor.h"
#include "ringserve/v1/attention.pb.h"

namespace ringserve {

class DenseMask {
 public:
  DenseMask() = default;  // no mask: shows everything

  // `whole`: the sizes of the scores, [..., H, Tq, Tk] or [Tq, Tk]. UNIMPLEMENTED where attn_mask
  // has more dimensions, INVALID_ARGUMENT where it does not broadcast to them.
  static absl::StatusOr<DenseMask> Make(const at::Tensor& attn_mask,
                                        const std::vector<int64_t>& whole);

  // 0 hides, as numbers that are all 0 or -inf do, too; else numbers that are added.
  bool boolean() const;

  // Whether its numbers are numbers of `type`, too.
  bool FitsInto(at::ScalarType type) const;

  // One mask, or one per batch row, that shows the same keys. Nothing: it has numbers, differs from
  // head to head or is not made of bands.
  std::optional<std::vector<v1::Mask>> Bands() const;

  // Dense [B or 1, H or 1, Tq, Tk], bytes or numbers of `type`.
  at::Tensor Bytes(at::ScalarType type) const;

 private:
  explicit DenseMask(at::Tensor scores) : scores_(std::move(scores)) {}

  at::Tensor scores_;  // [B or 1, H or 1, Tq, Tk], perhaps a view that repeats; undefined: none
};

}  // namespace ringserve
