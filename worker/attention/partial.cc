#include "worker/attention/partial.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include <ATen/TensorIterator.h>

#include "worker/attention/row_blend.h"

namespace ringserve {
namespace {

// Elements of work that are worth another thread.
constexpr int64_t kGrainElements = 32768;

template <typename Accumulated>
void MergeRow(Accumulated* into_out, Accumulated& into_lse, const Accumulated* out, Accumulated lse,
              int64_t dim) {
  constexpr Accumulated kNothing = -std::numeric_limits<Accumulated>::infinity();
  if (lse == kNothing) return;
  if (into_lse == kNothing) {
    into_lse = lse;
    CopyRow(into_out, out, dim);
    return;
  }
  // One of the two exponentials of the formula is e^0.
  const bool keep_more = into_lse >= lse;
  const Accumulated ratio = std::exp(keep_more ? lse - into_lse : into_lse - lse);
  const Accumulated more = 1 / (1 + ratio);
  const Accumulated less = ratio * more;
  into_lse = (keep_more ? into_lse : lse) + std::log1p(ratio);
  BlendRow(into_out, out, dim, keep_more ? more : less, keep_more ? less : more);
}

// Walks the rows of both partials in whatever order their strides make fastest, on all of
// LibTorch's threads: rows do not depend on each other.
template <typename Accumulated>
void MergeRows(const Partial& into, const Partial& part) {
  const int64_t dim = into.out.size(3);
  at::TensorIterator rows = at::TensorIteratorConfig()
                                .set_check_mem_overlap(false)
                                .check_all_same_dtype(false)
                                .resize_outputs(false)
                                .add_owned_output(into.out.select(3, 0))
                                .add_owned_output(into.lse)
                                .add_owned_const_input(part.out.select(3, 0))
                                .add_owned_const_input(part.lse)
                                .build();
  const auto merge = [dim](char** data, const int64_t* strides, int64_t size0, int64_t size1) {
    for (int64_t j = 0; j < size1; ++j) {
      char* at[4];
      for (int k = 0; k < 4; ++k) at[k] = data[k] + j * strides[4 + k];
      for (int64_t i = 0; i < size0; ++i) {
        MergeRow(reinterpret_cast<Accumulated*>(at[0]), *reinterpret_cast<Accumulated*>(at[1]),
                 reinterpret_cast<const Accumulated*>(at[2]),
                 *reinterpret_cast<const Accumulated*>(at[3]), dim);
        for (int k = 0; k < 4; ++k) at[k] += strides[k];
      }
    }
  };
  rows.for_each(merge, std::max<int64_t>(1, kGrainElements / dim));
}

}  // namespace

Partial Partial::Queries(int64_t begin, int64_t end) const {
  return {out.narrow(2, begin, end - begin), lse.narrow(2, begin, end - begin)};
}

void Clear(const Partial& partial) { partial.lse.fill_(-std::numeric_limits<double>::infinity()); }

void Merge(const Partial& into, const Partial& part) {
  TORCH_CHECK(into.out.sizes() == part.out.sizes() && into.lse.sizes() == part.lse.sizes(),
              "partials of different shapes: ", part.out.sizes(), " into ", into.out.sizes());
  const at::ScalarType type = into.out.scalar_type();
  TORCH_CHECK(part.out.scalar_type() == type && into.lse.scalar_type() == type &&
                  part.lse.scalar_type() == type,
              "partials of different types");
  TORCH_CHECK(into.out.stride(3) == 1 && part.out.stride(3) == 1, "strided value dim");
  if (into.lse.numel() == 0) return;
  switch (type) {
    case at::kDouble:
      return MergeRows<double>(into, part);
    case at::kFloat:
      return MergeRows<float>(into, part);
    default:
      TORCH_CHECK(false, "no partials of type ", type);
  }
}

void Finalize(const Partial& accumulated, const at::Tensor& out) {
  const at::Tensor unseen = accumulated.lse.isneginf();
  if (unseen.any().item<bool>()) accumulated.out.masked_fill_(unseen.unsqueeze(-1), 0);
  if (!out.is_same(accumulated.out)) out.copy_(accumulated.out);
}

}  // namespace ringserve
