#include "worker/attention/partial.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include <ATen/TensorIterator.h>

#include "worker/attention/row_blend.h"
#include "worker/attention/score_rows.h"

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

at::TensorIteratorConfig RowsOf(const Partial& partial) {
  at::TensorIteratorConfig rows;
  rows.set_check_mem_overlap(false).check_all_same_dtype(false).resize_outputs(false);
  rows.add_owned_output(partial.out.select(3, 0)).add_owned_output(partial.lse);
  return rows;
}

// Walks the rows of kTensors tensors in whatever order their strides make fastest, on all of
// LibTorch's threads: rows do not depend on each other.
template <int kTensors, typename Work>
void ForEachRow(at::TensorIterator& rows, int64_t dim, const Work& work) {
  const auto loop = [&work](char** data, const int64_t* strides, int64_t size0, int64_t size1) {
    for (int64_t j = 0; j < size1; ++j) {
      std::array<char*, kTensors> at;
      for (int k = 0; k < kTensors; ++k) at[k] = data[k] + j * strides[kTensors + k];
      for (int64_t i = 0; i < size0; ++i) {
        work(at);
        for (int k = 0; k < kTensors; ++k) at[k] += strides[k];
      }
    }
  };
  rows.for_each(loop, std::max<int64_t>(1, kGrainElements / dim));
}

template <typename Accumulated>
void MergeRows(const Partial& into, const Partial& part) {
  const int64_t dim = into.out.size(3);
  at::TensorIterator rows = RowsOf(into)
                                .add_owned_const_input(part.out.select(3, 0))
                                .add_owned_const_input(part.lse)
                                .build();
  ForEachRow<4>(rows, dim, [dim](const std::array<char*, 4>& at) {
    MergeRow(reinterpret_cast<Accumulated*>(at[0]), *reinterpret_cast<Accumulated*>(at[1]),
             reinterpret_cast<const Accumulated*>(at[2]),
             *reinterpret_cast<const Accumulated*>(at[3]), dim);
  });
}

void CheckType(const Partial& partial) {
  const at::ScalarType type = partial.out.scalar_type();
  TORCH_CHECK(type == at::kDouble || type == at::kFloat, "no partials of type ", type);
  TORCH_CHECK(partial.out.stride(3) == 1, "strided value dim");
}

void CheckClosed(const Partial& into, const Partial& part) {
  TORCH_CHECK(!into.total.defined() && !part.total.defined(), "an open partial");
  TORCH_CHECK(into.out.sizes() == part.out.sizes() && into.lse.sizes() == part.lse.sizes(),
              "partials of different shapes: ", part.out.sizes(), " into ", into.out.sizes());
  const at::ScalarType type = into.out.scalar_type();
  TORCH_CHECK(part.out.scalar_type() == type && into.lse.scalar_type() == type &&
                  part.lse.scalar_type() == type,
              "partials of different types");
  CheckType(into);
  CheckType(part);
}

// Out 0 for rows that saw nothing. Waits for the device: to ask is cheaper than to write.
void ClearUnseen(const Partial& partial) {
  const at::Tensor unseen = partial.lse.isneginf();
  if (unseen.any().item<bool>()) partial.out.masked_fill_(unseen.unsqueeze(-1), 0);
}

}  // namespace

Partial Partial::Queries(int64_t begin, int64_t end) const {
  const auto rows = [&](const at::Tensor& all) { return all.narrow(2, begin, end - begin); };
  return {rows(out), rows(lse), total.defined() ? rows(total) : total};
}

void Clear(const Partial& partial) { partial.lse.fill_(-std::numeric_limits<double>::infinity()); }

void Settle(const Partial& partial) {
  TORCH_CHECK(partial.total.defined() && partial.total.sizes() == partial.lse.sizes() &&
                  partial.out.scalar_type() == at::kFloat &&
                  partial.lse.scalar_type() == at::kFloat &&
                  partial.total.scalar_type() == at::kFloat,
              "not an open partial of fp32");
  TORCH_CHECK(partial.out.stride(3) == 1, "strided value dim");
  if (partial.lse.numel() == 0) return;
  const int64_t dim = partial.out.size(3);
  at::TensorIterator rows = RowsOf(partial).add_owned_const_input(partial.total).build();
  ForEachRow<3>(rows, dim, [dim](const std::array<char*, 3>& at) {
    float* const out = reinterpret_cast<float*>(at[0]);
    float& lse = *reinterpret_cast<float*>(at[1]);
    const float total = *reinterpret_cast<const float*>(at[2]);
    if (lse == -std::numeric_limits<float>::infinity()) return;
    ScaleRow(out, out, dim, 1 / total);
    lse += std::log(total);
  });
}

void Merge(const Partial& into, const Partial& part) {
  CheckClosed(into, part);
  if (into.lse.numel() == 0) return;
  if (!into.out.is_cpu()) return MergeOnAnyDevice(into, part);
  into.out.scalar_type() == at::kDouble ? MergeRows<double>(into, part)
                                        : MergeRows<float>(into, part);
}

void MergeOnAnyDevice(const Partial& into, const Partial& part) {
  CheckClosed(into, part);
  const at::Tensor unseen = into.lse.isneginf(), unseen_part = part.lse.isneginf();
  const at::Tensor keep_more = into.lse.ge(part.lse);
  // One of the two exponentials of the formula is e^0. NaN stays NaN.
  const at::Tensor ratio = into.lse.sub(part.lse).abs_().neg_().exp_();
  const at::Tensor more = ratio.add(1).reciprocal_(), less = more.mul(ratio);
  const at::Tensor keep =
      at::where(keep_more, more, less).masked_fill_(unseen, 0).masked_fill_(unseen_part, 1);
  const at::Tensor take =
      at::where(keep_more, less, more).masked_fill_(unseen, 1).masked_fill_(unseen_part, 0);
  const at::Tensor lse = at::maximum(into.lse, part.lse).add_(ratio.log1p_());
  into.lse.copy_(at::where(unseen, part.lse, at::where(unseen_part, into.lse, lse)));
  into.out.masked_fill_(unseen.unsqueeze(-1), 0).mul_(keep.unsqueeze(-1));
  into.out.addcmul_(part.out.masked_fill(unseen_part.unsqueeze(-1), 0), take.unsqueeze(-1));
}

void AddSinks(const Partial& partial, const at::Tensor& sink_logits, bool keep_lse) {
  TORCH_CHECK(sink_logits.scalar_type() == at::kFloat &&
                  sink_logits.sizes() == partial.lse.sizes().slice(1, 1),
              "sink logits are not fp32, one for each head");
  CheckType(partial);
  ClearUnseen(partial);
  const at::Tensor sink =
      sink_logits.to(partial.lse.scalar_type()).view({1, -1, 1}).expand_as(partial.lse);
  const at::Tensor sink_more = partial.lse.lt(sink), none = sink.isneginf();
  const at::Tensor ratio = partial.lse.sub(sink).abs_().neg_().exp_();  // NaN stays NaN
  const at::Tensor weight = at::where(sink_more, ratio, 1).div_(ratio.add(1)).masked_fill_(none, 1);
  partial.out.mul_(weight.unsqueeze(-1));
  if (keep_lse) return;
  const at::Tensor lse = at::maximum(partial.lse, sink).add_(ratio.log1p_());
  partial.lse.copy_(at::where(none, partial.lse, lse));
}

void Finalize(const Partial& accumulated, const at::Tensor& out) {
  ClearUnseen(accumulated);
  if (!out.is_same(accumulated.out)) out.copy_(accumulated.out);
}

}  // namespace ringserve
