// The inner loops of a tile: operands laid out for matrix products, scores turned
// into weights. Compiled for AVX-512, AVX2 and the baseline; the processor chooses when the program
// is loaded. Knows no tensors.
#pragma once

#include <cstdint>

#include "worker/attention/row_blend.h"

namespace ringserve {

// Columns of a product's right operand that lie side by side: what all of oneDNN's kernels take.
inline constexpr int64_t kPanelColumns = 64;

// `rows` (at most 64) keys of `dim` numbers, `stride` apart, become the columns of a panel; the
// columns past them are 0. Numbers of 16 bits lie in pairs, as the processor's dot products read
// them: panel[dim / 2][64][2], where an odd dim gets a 0. Wider ones lie as panel[dim][64].
void LayOutKeys(BFloat16Bits* panel, const BFloat16Bits* keys, int64_t stride, int64_t rows,
                int64_t dim);
void LayOutKeys(float* panel, const BFloat16Bits* keys, int64_t stride, int64_t rows, int64_t dim);
void LayOutKeys(float* panel, const HalfBits* keys, int64_t stride, int64_t rows, int64_t dim);
void LayOutKeys(float* panel, const float* keys, int64_t stride, int64_t rows, int64_t dim);

// `rows` values (at most 64) of `columns` numbers (at most `width`), `stride` apart, become the
// first rows of a panel of 64 rows and `width` columns; the rest is 0. In pairs:
// panel[32][width][2].
void LayOutValues(BFloat16Bits* panel, const BFloat16Bits* values, int64_t stride, int64_t rows,
                  int64_t columns, int64_t width);
void LayOutValues(float* panel, const BFloat16Bits* values, int64_t stride, int64_t rows,
                  int64_t columns, int64_t width);
void LayOutValues(float* panel, const HalfBits* values, int64_t stride, int64_t rows,
                  int64_t columns, int64_t width);
void LayOutValues(float* panel, const float* values, int64_t stride, int64_t rows, int64_t columns,
                  int64_t width);

// results[i] = row . rows[i]: n rows of `dim` numbers, `stride` apart.
void MultiplyRows(float* results, const float* row, const float* rows, int64_t stride, int64_t n,
                  int64_t dim);
void MultiplyRows(float* results, const float* row, const BFloat16Bits* rows, int64_t stride,
                  int64_t n, int64_t dim);
void MultiplyRows(float* results, const float* row, const HalfBits* rows, int64_t stride, int64_t n,
                  int64_t dim);

// sums += the sum of weights[i] * rows[i]: n rows of `columns` numbers, `stride` apart.
void AddRows(float* sums, const float* weights, const float* rows, int64_t stride, int64_t n,
             int64_t columns);
void AddRows(float* sums, const float* weights, const BFloat16Bits* rows, int64_t stride, int64_t n,
             int64_t columns);
void AddRows(float* sums, const float* weights, const HalfBits* rows, int64_t stride, int64_t n,
             int64_t columns);

// The largest of n scores that are numbers; -inf where there is none.
float Largest(const float* scores, int64_t n);

// row[i] becomes e^(row[i] * scale - most); `most` is no less than the largest product, but for
// roundings. Returns their sum. e^x has a relative error of 2^-22 + 2^-23 |x|; below x = -87 it is
// 0. NaN stays NaN.
float Weigh(float* row, int64_t n, float scale, float most);
// The same, rounded into `weights`; the sum is of the numbers before that. May change `row`.
float Weigh(BFloat16Bits* weights, float* row, int64_t n, float scale, float most);

// row[i] = row[i] * scale - slope * |distance - i|.
void AddDistances(float* row, int64_t n, float scale, float slope, int64_t distance);
void AddDistances(double* row, int64_t n, double scale, float slope, int64_t distance);

// row[i] = row[i] * scale + bias[i].
void AddBias(float* row, const float* bias, int64_t n, float scale);
void AddBias(float* row, const BFloat16Bits* bias, int64_t n, float scale);
void AddBias(float* row, const HalfBits* bias, int64_t n, float scale);
void AddBias(double* row, const double* bias, int64_t n, double scale);

// row[i] = row[i] * scale; -inf where visible[i] is 0.
void Hide(float* row, const uint8_t* visible, int64_t n, float scale);
void Hide(double* row, const uint8_t* visible, int64_t n, double scale);

// row[i] = factor * from[i]. `row` may be `from`.
void ScaleRow(float* row, const float* from, int64_t n, float factor);

}  // namespace ringserve
