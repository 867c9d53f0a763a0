#include "tests/gpu/hosted_block.h"

#include "worker/attention/backward_block.h"

namespace ringserve::test {
namespace {

void Back(const at::Tensor& to, const at::Tensor& from) {
  if (to.defined()) to.copy_(from);
}

}  // namespace

const Block& HostedBlock::block() const {
  std::call_once(made_, [this] { block_ = make_(); });
  return *block_;
}

at::Tensor HostedBlock::There(const at::Tensor& tensor) const {
  return tensor.defined() ? tensor.to(device_) : tensor;
}

ScoreTerms HostedBlock::There(const ScoreTerms& terms) const {
  return {There(terms.bias), There(terms.alibi_slopes), terms.distance};
}

void HostedBlock::Accumulate(const Partial& into, const at::Tensor& q, const at::Tensor& k,
                             const at::Tensor& v, const Tile& tile, double scale,
                             const ScoreTerms& terms) const {
  const Partial there = {There(into.out), There(into.lse), There(into.total)};
  block().Accumulate(there, There(q), There(k), There(v), tile, scale, There(terms));
  Back(into.out, there.out);
  Back(into.lse, there.lse);
  Back(into.total, there.total);
}

void HostedBlock::AccumulateGradients(const Gradients& into, const AnsweredQueries& queries,
                                      const at::Tensor& k, const at::Tensor& v, const Tile& tile,
                                      double scale, const ScoreTerms& terms) const {
  const Gradients there = {There(into.d_q), There(into.d_k), There(into.d_v)};
  const AnsweredQueries answered = {There(queries.q), There(queries.d_out), There(queries.lse),
                                    There(queries.delta)};
  block().AccumulateGradients(there, answered, There(k), There(v), tile, scale, There(terms));
  Back(into.d_q, there.d_q);
  Back(into.d_k, there.d_k);
  Back(into.d_v, there.d_v);
}

}  // namespace ringserve::test
