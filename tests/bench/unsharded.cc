#include "tests/bench/unsharded.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <stdexcept>

namespace ringserve::bench {
namespace {

constexpr int64_t kComparedRows =
    64;  // of each head, evenly spread, the first and the last among them
constexpr uint64_t kSeed = 1;

at::ScalarType TypeOf(v1::DType dtype) {
  switch (dtype) {
    case v1::DTYPE_F32:
      return at::kFloat;
    case v1::DTYPE_F64:
      return at::kDouble;
    case v1::DTYPE_BF16:
      return at::kBFloat16;
    case v1::DTYPE_F16:
      return at::kHalf;
    default:
      throw std::invalid_argument("no such dtype");
  }
}

std::span<const std::byte> BytesOf(const at::Tensor& tensor) {
  return {static_cast<const std::byte*>(tensor.const_data_ptr()), tensor.nbytes()};
}

at::Tensor Over(std::span<const std::byte> bytes, const at::Tensor& like) {
  if (bytes.size() != like.nbytes()) throw std::invalid_argument("an answer of another size");
  return at::from_blob(const_cast<std::byte*>(bytes.data()), like.sizes(), like.options());
}

double LargestError(const at::Tensor& got, const at::Tensor& right) {
  const double error = (got.to(at::kDouble) - right).abs().max().item<double>();
  return std::isnan(error) ? std::numeric_limits<double>::infinity() : error;
}

}  // namespace

struct Unsharded::Tensors {
  at::Tensor q, k, v, out, lse;
  // Of some rows, in fp64.
  at::Tensor rows, right_out, right_lse;

  void Compute() {
    const int64_t length = q.size(2), group = q.size(1) / k.size(1);
    rows = at::linspace(0, static_cast<double>(length - 1), std::min(kComparedRows, length),
                        at::kDouble)
               .round()
               .to(at::kLong);
    const at::Tensor hidden = at::arange(length).unsqueeze(0) > rows.unsqueeze(1);
    right_out = at::empty({1, q.size(1), rows.size(0), v.size(3)}, at::kDouble);
    right_lse = at::empty({1, q.size(1), rows.size(0)}, at::kDouble);
    for (int64_t head = 0; head < q.size(1); ++head) {
      const at::Tensor keys = k[0][head / group].to(at::kDouble);
      at::Tensor scores = at::matmul(q[0][head].index_select(0, rows).to(at::kDouble), keys.t());
      scores.div_(std::sqrt(static_cast<double>(q.size(3))));
      scores.masked_fill_(hidden, -std::numeric_limits<double>::infinity());
      right_lse[0][head].copy_(at::logsumexp(scores, {1}));
      right_out[0][head].copy_(
          at::matmul(at::softmax(scores, 1), v[0][head / group].to(at::kDouble)));
    }
  }

  Errors Compare(const at::Tensor& some_out, const at::Tensor& some_lse) const {
    return {.out = LargestError(some_out.index_select(2, rows), right_out),
            .lse = LargestError(some_lse.index_select(2, rows), right_lse)};
  }
};

Unsharded::Unsharded(int64_t q_heads, int64_t kv_heads, int64_t length, int64_t dim,
                     v1::DType dtype)
    : tensors_(std::make_unique<Tensors>()) {
  const c10::InferenceMode guard;
  at::manual_seed(kSeed);
  const auto random = [&](int64_t heads) {
    return at::randn({1, heads, length, dim}).to(TypeOf(dtype)).contiguous();
  };
  tensors_->q = random(q_heads);
  tensors_->k = random(kv_heads);
  tensors_->v = random(kv_heads);
  tensors_->Compute();
}

Unsharded::~Unsharded() = default;

std::span<const std::byte> Unsharded::q() const { return BytesOf(tensors_->q); }
std::span<const std::byte> Unsharded::k() const { return BytesOf(tensors_->k); }
std::span<const std::byte> Unsharded::v() const { return BytesOf(tensors_->v); }

double Unsharded::Run() {
  const c10::InferenceMode guard;
  const auto begin = std::chrono::steady_clock::now();
  auto [out, lse] = at::_scaled_dot_product_flash_attention_for_cpu(tensors_->q, tensors_->k,
                                                                    tensors_->v, 0.0, true);
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
  tensors_->out = std::move(out);
  tensors_->lse = std::move(lse);
  return seconds.count();
}

Errors Unsharded::OwnErrors() const {
  const c10::InferenceMode guard;
  return tensors_->Compare(tensors_->out, tensors_->lse);
}

Errors Unsharded::ErrorsOf(std::span<const std::byte> out, std::span<const std::byte> lse) const {
  const c10::InferenceMode guard;
  return tensors_->Compare(Over(out, tensors_->out), Over(lse, tensors_->lse));
}

int Threads() { return at::get_num_threads(); }
std::string KernelCapability() { return at::get_cpu_capability(); }

}  // namespace ringserve::bench
