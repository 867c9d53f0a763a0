#include "tests/worker/attention/fake_attention_kernels.h"

#include <cmath>
#include <limits>

namespace ringserve::test {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Every row begins on 16 bytes. The stride of the rows of q, k and v counts even if there is one.
void CheckRows(const at::Tensor& t, const char* what, int64_t counts_always = 2) {
  TORCH_CHECK(t.dim() == 4 && t.numel() > 0, what, " is empty or of other dims");
  TORCH_CHECK(t.stride(3) == 1, what, " has strided rows");
  TORCH_CHECK(reinterpret_cast<uintptr_t>(t.const_data_ptr()) % 16 == 0, what, " is not aligned");
  for (const int64_t dim : {0, 1, 2}) {
    TORCH_CHECK((t.size(dim) == 1 && dim != counts_always) ||
                    t.stride(dim) * static_cast<int64_t>(t.element_size()) % 16 == 0,
                what, " is not aligned along dim ", dim);
  }
}

void CheckTensors(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
  CheckRows(q, "query");
  CheckRows(k, "key");
  CheckRows(v, "value");
  TORCH_CHECK(k.scalar_type() == q.scalar_type() && v.scalar_type() == q.scalar_type(),
              "tensors of different types");
  TORCH_CHECK(k.size(0) == q.size(0) && v.size(0) == q.size(0), "different batches");
  TORCH_CHECK(k.size(1) == v.size(1) && k.size(2) == v.size(2), "keys and values differ");
  TORCH_CHECK(k.size(3) == q.size(3), "head dims of query and key differ");
  TORCH_CHECK(q.size(3) % 8 == 0 && v.size(3) % 8 == 0, "head dims are not multiples of 8");
}

at::Tensor Scores(const at::Tensor& q, const at::Tensor& k, double scale) {
  const at::Tensor keys = k.to(at::kFloat).repeat_interleave(q.size(1) / k.size(1), 1);
  return at::matmul(q.to(at::kFloat), keys.transpose(2, 3)).mul_(static_cast<float>(scale));
}

void HideAbove(const at::Tensor& scores, int64_t diagonal) {
  scores.masked_fill_(at::ones({scores.size(2), scores.size(3)}, at::kBool).triu(diagonal + 1),
                      -kInfinity);
}

// The kernels' maximum passes over NaN.
at::Tensor Largest(const at::Tensor& scores) {
  const at::Tensor most = scores.masked_fill(scores.isnan(), -kInfinity).amax(-1, true);
  return most.masked_fill(most.isneginf(), 0);
}

// Token-major memory, as the kernels write it.
at::Tensor Out(const at::Tensor& weights, const at::Tensor& v, at::ScalarType type) {
  const at::Tensor values = v.to(at::kFloat).repeat_interleave(weights.size(1) / v.size(1), 1);
  return at::matmul(weights, values).to(type).transpose(1, 2).contiguous().transpose(1, 2);
}

}  // namespace

std::pair<at::Tensor, at::Tensor> FakeAttentionKernels::Flash(const at::Tensor& q,
                                                              const at::Tensor& k,
                                                              const at::Tensor& v, bool causal,
                                                              double scale) const {
  TORCH_CHECK(capability_ >= 80, "FlashAttention only supports Ampere GPUs or newer");
  TORCH_CHECK(q.scalar_type() == at::kHalf || q.scalar_type() == at::kBFloat16,
              "FlashAttention only supports fp16 and bf16");
  CheckTensors(q, k, v);
  TORCH_CHECK(q.size(3) == v.size(3) && q.size(3) <= 256, "head dim ", q.size(3));
  TORCH_CHECK(q.size(1) % k.size(1) == 0, "heads do not share keys");
  if (calls_ != nullptr) ++calls_->flash;

  const at::Tensor scores = Scores(q, k, scale);
  if (causal) HideAbove(scores, k.size(2) - q.size(2));
  const at::Tensor most = Largest(scores);
  const at::Tensor weights = scores.sub_(most).exp_();
  const at::Tensor total = weights.sum(-1, true);
  const at::Tensor nothing = total.eq(0).logical_or(total.isnan());
  const at::Tensor lse = (most + total.log()).masked_fill(nothing, kInfinity).squeeze(-1);
  return {Out(weights / total.masked_fill(nothing, 1), v, q.scalar_type()), lse};
}

std::pair<at::Tensor, at::Tensor> FakeAttentionKernels::Efficient(const at::Tensor& q,
                                                                  const at::Tensor& k,
                                                                  const at::Tensor& v,
                                                                  const at::Tensor& bias,
                                                                  bool causal, double scale) const {
  const at::ScalarType type = q.scalar_type();
  TORCH_CHECK(
      type == at::kFloat || type == at::kHalf || (type == at::kBFloat16 && capability_ >= 80),
      "no kernel for ", type);
  CheckTensors(q, k, v);
  TORCH_CHECK(k.size(1) == q.size(1), "heads share keys");
  for (const at::Tensor* t : {&q, &k, &v}) {
    TORCH_CHECK((t->size(1) - 1) * t->stride(1) <= std::numeric_limits<int32_t>::max(),
                "heads are too far apart");
    TORCH_CHECK((t->size(2) - 1) * t->stride(2) <= std::numeric_limits<int32_t>::max(),
                "rows are too far apart");
  }
  at::Tensor scores = Scores(q, k, scale);
  if (bias.defined()) {
    CheckRows(bias, "bias", -1);
    TORCH_CHECK(bias.scalar_type() == type, "a bias of ", bias.scalar_type());
    TORCH_CHECK(bias.sizes() == scores.sizes(), "a bias of other shape");
    scores.add_(bias);
  }
  if (causal) HideAbove(scores, 0);
  if (calls_ != nullptr) ++calls_->efficient;

  constexpr double kLog2e = 1.4426950408889634;
  scores.mul_(static_cast<float>(kLog2e));
  const at::Tensor most = Largest(scores);
  const at::Tensor weights = scores.sub_(most).exp2_();
  const at::Tensor total = weights.sum(-1, true);
  const at::Tensor seen = total.masked_fill(total.eq(0), 1);
  const int64_t rows = (q.size(2) + 31) / 32 * 32;
  const at::Tensor lse = at::full({q.size(0), q.size(1), rows}, kInfinity, at::kFloat);
  lse.narrow(2, 0, q.size(2)).copy_((most / kLog2e + seen.log()).squeeze(-1));
  const at::Tensor out = Out(weights / seen, v, type);
  return {out.masked_fill_(total.eq(0), 7), lse};
}

}  // namespace ringserve::test
