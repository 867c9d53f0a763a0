#include "worker/attention/products.h"

#include <exception>

#include <ATen/native/CPUBlas.h>

#include "worker/attention/score_rows.h"

namespace ringserve {
namespace {

namespace cpublas = at::native::cpublas;

// One small product whose result is known: a processor or library that does otherwise than
// score_rows.h thinks is not asked again.
bool PairsWork() {
  if (!__builtin_cpu_supports("avx512bf16") && !cpublas::could_pack(at::kBFloat16)) return false;
  const at::Tensor a =
      at::arange(16 * 32, at::kFloat).remainder(7).view({16, 32}).to(at::kBFloat16);
  const at::Tensor b =
      at::arange(64 * 32, at::kFloat).remainder(5).view({64, 32}).to(at::kBFloat16);
  at::Tensor panel = at::empty({32 * 64}, at::kBFloat16), c = at::empty({16, 64}, at::kFloat);
  const auto bits = [](const at::Tensor& t) {
    return static_cast<BFloat16Bits*>(t.mutable_data_ptr());
  };
  LayOutKeys(bits(panel), bits(b), 32, 64, 32);
  try {
    Multiply(16, 64, 32, bits(a), 32, bits(panel), c.mutable_data_ptr<float>(), 64, false);
    ReleaseRegisters(bits(a));
  } catch (const std::exception&) {
    return false;
  }
  return c.equal(at::matmul(a.to(at::kFloat), b.to(at::kFloat).t()));
}

}  // namespace

Products BestProducts(at::ScalarType type) {
  static const bool pairs_work = PairsWork();
  return type == at::kBFloat16 && pairs_work ? Products::kPairs : Products::kWide;
}

void Multiply(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b,
              float* c, int64_t ldc, bool add) {
  cpublas::brgemm(m, n, k, lda, n, ldc, add, a, b, c, /*is_vnni=*/false);
}
void Multiply(int64_t m, int64_t n, int64_t k, const BFloat16Bits* a, int64_t lda,
              const BFloat16Bits* b, float* c, int64_t ldc, bool add) {
  cpublas::brgemm(m, n, k, lda, n, ldc, add, reinterpret_cast<const at::BFloat16*>(a),
                  reinterpret_cast<const at::BFloat16*>(b), c, /*is_vnni=*/true);
}

void ReleaseRegisters(const float*) {}
void ReleaseRegisters(const BFloat16Bits*) { cpublas::brgemm_release(); }

}  // namespace ringserve
