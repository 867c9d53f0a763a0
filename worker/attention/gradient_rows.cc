#include "worker/attention/gradient_rows.h"

#include <cmath>

#include "worker/attention/score_rows.h"
#include "worker/attention/widen.h"

namespace ringserve {
namespace {

template <typename Wide>
RINGSERVE_INLINE void Cap(Wide* row, int64_t n, Wide most) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) row[i] = row[i] > most ? most : row[i];
}

template <typename Wide>
RINGSERVE_INLINE void OfScores(Wide* row, const Wide* weights, int64_t n, Wide delta) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) row[i] = weights[i] * (row[i] - delta);
}

RINGSERVE_CLONES void CapRow(float* row, int64_t n, float most) { Cap(row, n, most); }

}  // namespace

void WeighAgain(float* row, int64_t n, float lse) {
  CapRow(row, n, lse);
  Weigh(row, n, 1, lse);
}

void WeighAgain(double* row, int64_t n, double lse) {
  for (int64_t i = 0; i < n; ++i) row[i] = std::exp(row[i] > lse ? 0 : row[i] - lse);
}

RINGSERVE_CLONES void ScoreGradients(float* row, const float* weights, int64_t n, float delta) {
  OfScores(row, weights, n, delta);
}
RINGSERVE_CLONES void ScoreGradients(double* row, const double* weights, int64_t n, double delta) {
  OfScores(row, weights, n, delta);
}

}  // namespace ringserve
