#include "ringserve/merge.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <functional>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"

namespace ringserve {
namespace {

template <typename T>
void MergeRow(std::span<T> out, T& lse, std::span<const T> part_out, T part_lse) {
  constexpr T kNothing = -std::numeric_limits<T>::infinity();
  if (part_lse == kNothing) {
    if (lse == kNothing) std::fill(out.begin(), out.end(), T{0});
    return;
  }
  if (lse == kNothing) {
    lse = part_lse;
    std::copy(part_out.begin(), part_out.end(), out.begin());
    return;
  }
  // One of the two exponentials of the formula is e^0.
  const double l1 = lse, l2 = part_lse;
  const bool first_is_more = l1 >= l2;
  const double ratio = std::exp(first_is_more ? l2 - l1 : l1 - l2);
  const double more = 1 / (1 + ratio), less = ratio / (1 + ratio);
  const double w1 = first_is_more ? more : less, w2 = first_is_more ? less : more;
  lse = static_cast<T>((first_is_more ? l1 : l2) + std::log1p(ratio));
  for (size_t d = 0; d < out.size(); ++d)
    out[d] = static_cast<T>(w1 * double{out[d]} + w2 * double{part_out[d]});
}

absl::Status CheckShape(const PartialShape& shape, size_t& out_size, size_t& lse_size) {
  size_t product = 1;
  for (const auto& [name, dim] : {std::pair{"batch", shape.batch},
                                  {"heads", shape.heads},
                                  {"queries", shape.queries},
                                  {"value_dim", shape.value_dim}}) {
    if (dim < 1)
      return absl::InvalidArgumentError(absl::StrCat(name, " is ", dim, ": must be at least 1"));
    lse_size = product;
    if (__builtin_mul_overflow(product, static_cast<size_t>(dim), &product)) {
      return absl::InvalidArgumentError(
          absl::StrCat(name, " is ", dim, ": the shape has more elements than 64 bits count"));
    }
  }
  out_size = product;
  if (shape.layout == v1::TENSOR_LAYOUT_UNSPECIFIED || shape.layout == v1::TENSOR_LAYOUT_BHSD ||
      shape.layout == v1::TENSOR_LAYOUT_BSHD)
    return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("layout is ", static_cast<int>(shape.layout),
                                                 ": must be TENSOR_LAYOUT_BHSD or _BSHD"));
}

absl::Status CheckElements(const char* name, size_t size, size_t expected) {
  if (size == expected) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(name, " has ", size, " elements: the shape says ", expected));
}

template <typename T>
bool ShareMemory(std::span<const T> a, std::span<const T> b) {
  const std::less<const T*> before;
  return before(a.data(), b.data() + b.size()) && before(b.data(), a.data() + a.size());
}

template <typename T>
absl::Status CheckApart(const PartialSpans<T>& into, const PartialSpans<const T>& part) {
  using Span = std::span<const T>;
  const auto check = [](const char* name, Span a, const char* other_name, Span b) {
    if (!ShareMemory(a, b)) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat(name, " overlaps ", other_name));
  };
  absl::Status status = check("into.out", into.out, "into.lse", into.lse);
  if (status.ok()) status = check("into.out", into.out, "part.out", part.out);
  if (status.ok()) status = check("into.out", into.out, "part.lse", part.lse);
  if (status.ok()) status = check("into.lse", into.lse, "part.out", part.out);
  if (status.ok()) status = check("into.lse", into.lse, "part.lse", part.lse);
  return status;
}

template <typename T>
absl::Status Merge(const PartialShape& shape, const PartialSpans<T>& into,
                   const PartialSpans<const T>& part) {
  size_t out_size = 0, lse_size = 0;
  absl::Status status = CheckShape(shape, out_size, lse_size);
  if (status.ok()) status = CheckElements("into.out", into.out.size(), out_size);
  if (status.ok()) status = CheckElements("into.lse", into.lse.size(), lse_size);
  if (status.ok()) status = CheckElements("part.out", part.out.size(), out_size);
  if (status.ok()) status = CheckElements("part.lse", part.lse.size(), lse_size);
  if (status.ok()) status = CheckApart(into, part);
  if (!status.ok()) return status;

  const bool bshd = shape.layout == v1::TENSOR_LAYOUT_BSHD;
  const size_t dim = shape.value_dim;
  size_t lse_row = 0;
  for (int64_t b = 0; b < shape.batch; ++b) {
    for (int64_t h = 0; h < shape.heads; ++h) {
      for (int64_t s = 0; s < shape.queries; ++s, ++lse_row) {
        const size_t row = bshd ? (b * shape.queries + s) * shape.heads + h : lse_row;
        MergeRow<T>(into.out.subspan(row * dim, dim), into.lse[lse_row],
                    part.out.subspan(row * dim, dim), part.lse[lse_row]);
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status MergePartials(const PartialShape& shape, PartialSpans<float> into,
                           PartialSpans<const float> part) {
  return Merge<float>(shape, into, part);
}

absl::Status MergePartials(const PartialShape& shape, PartialSpans<double> into,
                           PartialSpans<const double> part) {
  return Merge<double>(shape, into, part);
}

}  // namespace ringserve
