// The inner loops of a tile's backward pass: scores turned into weights again, and into gradients
// of scores. Compiled for AVX-512, AVX2 and the baseline; the processor chooses when the program is
// loaded. Knows no tensors.
#pragma once

#include <cstdint>

namespace ringserve {

// row[i] becomes e^(row[i] - lse), at most 1: a score above the log of the sum that it is part of
// is there by rounding. fp32 as Weigh (score_rows.h), fp64 by the C library. NaN stays NaN.
void WeighAgain(float* row, int64_t n, float lse);
void WeighAgain(double* row, int64_t n, double lse);

// row[i] = weights[i] * (row[i] - delta).
void ScoreGradients(float* row, const float* weights, int64_t n, float delta);
void ScoreGradients(double* row, const double* weights, int64_t n, double delta);

}  // namespace ringserve
