#include "worker/attention/dense_products.h"

#include <vector>

namespace ringserve {
namespace {

// [B, Hq, Sq, n] as [B, Hkv, Hq / Hkv * Sq, n]: rows that read the same keys follow each other.
at::Tensor ByKeyHead(const at::Tensor& rows, int64_t kv_heads) {
  return rows.reshape({rows.size(0), kv_heads, -1, rows.size(3)});
}

// Scaled scores [B, Hkv, rows, Sk] of rows by key head.
at::Tensor Scores(const at::Tensor& q, const at::Tensor& k, double scale) {
  return at::matmul(q, k.transpose(2, 3)).mul_(scale);
}

}  // namespace

Partial AttendByProducts(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                         const at::Tensor& mask, double scale) {
  const at::ScalarType wide = WideType(q.scalar_type());
  const int64_t batch = q.size(0), heads = q.size(1), queries = q.size(2);
  const at::Tensor scores = Scores(ByKeyHead(q.to(wide), k.size(1)), k.to(wide), scale);
  if (mask.defined()) scores.view({batch, heads, queries, k.size(2)}).add_(mask);
  const at::Tensor most = scores.amax(-1, /*keepdim=*/true);
  const at::Tensor shift = most.masked_fill(most.isneginf(), 0);
  const at::Tensor weights = scores.sub_(shift).exp_();
  const at::Tensor total = weights.sum(-1, /*keepdim=*/true);
  const at::Tensor out = at::matmul(weights, v.to(wide)).div_(total);
  return {out.view({batch, heads, queries, v.size(3)}),
          shift.add(total.log()).view({batch, heads, queries})};
}

void AddGradientsByProducts(const Gradients& into, const AnsweredQueries& queries,
                            const at::Tensor& k, const at::Tensor& v, const at::Tensor& mask,
                            double scale) {
  const at::ScalarType wide = WideType(k.scalar_type());
  const int64_t batch = k.size(0), kv_heads = k.size(1), keys = k.size(2);
  const std::vector<int64_t> pairs = {batch, queries.q.size(1), queries.q.size(2), keys};
  const at::Tensor saw_nothing = queries.lse.isneginf().unsqueeze(-1);
  const auto seeing = [&](const at::Tensor& rows) {
    return ByKeyHead(rows.to(wide).masked_fill(saw_nothing, 0), kv_heads);
  };
  const at::Tensor q = seeing(queries.q), d_out = seeing(queries.d_out);
  const at::Tensor wide_k = k.to(wide), wide_v = v.to(wide);
  const at::Tensor hidden = mask.defined() ? saw_nothing.logical_or(mask.isneginf()) : saw_nothing;

  const at::Tensor weights = Scores(q, wide_k, scale);
  at::Tensor of_pairs = weights.view(pairs);
  if (mask.defined()) of_pairs.add_(mask);
  // At most 1: a score above the log of the sum that it is part of is there by rounding.
  of_pairs.sub_(queries.lse.unsqueeze(-1)).clamp_max_(0).exp_().masked_fill_(hidden, 0);
  into.d_v.add_(at::matmul(weights.transpose(2, 3), d_out));

  const at::Tensor d_scores = Scores(d_out, wide_v, 1);
  d_scores.view(pairs).sub_(queries.delta.unsqueeze(-1)).mul_(of_pairs).masked_fill_(hidden, 0);
  into.d_k.add_(at::matmul(d_scores.transpose(2, 3), q), scale);
  into.d_q.add_(at::matmul(d_scores, wide_k).view(into.d_q.sizes()), scale);
}

}  // namespace ringserve
