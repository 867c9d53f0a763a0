#include "worker/attention/row_blend.h"

#include "worker/attention/widen.h"

namespace ringserve {
namespace {

template <typename Number>
RINGSERVE_INLINE void Blend(Number* __restrict accumulator, const Number* __restrict values,
                            int64_t n, Number keep, Number take) {
  for (int64_t i = 0; i < n; ++i) accumulator[i] = keep * accumulator[i] + take * values[i];
}

template <typename Accumulated, typename Value>
RINGSERVE_INLINE void Copy(Accumulated* __restrict accumulator, const Value* __restrict values,
                           int64_t n) {
  for (int64_t i = 0; i < n; ++i) accumulator[i] = Widen(values[i]);
}

}  // namespace

RINGSERVE_CLONES void BlendRow(double* accumulator, const double* values, int64_t n, double keep,
                               double take) {
  Blend(accumulator, values, n, keep, take);
}
RINGSERVE_CLONES void BlendRow(float* accumulator, const float* values, int64_t n, float keep,
                               float take) {
  Blend(accumulator, values, n, keep, take);
}

RINGSERVE_CLONES void CopyRow(double* accumulator, const double* values, int64_t n) {
  Copy(accumulator, values, n);
}
RINGSERVE_CLONES void CopyRow(float* accumulator, const float* values, int64_t n) {
  Copy(accumulator, values, n);
}
RINGSERVE_CLONES void CopyRow(float* accumulator, const BFloat16Bits* values, int64_t n) {
  Copy(accumulator, values, n);
}
RINGSERVE_CLONES void CopyRow(float* accumulator, const HalfBits* values, int64_t n) {
  Copy(accumulator, values, n);
}

}  // namespace ringserve
