#include "worker/attention/score_rows.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "worker/attention/widen.h"

namespace ringserve {
namespace {

constexpr int kLanes = 16;
using Words = uint32_t __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
using Floats = float __attribute__((vector_size(4 * kLanes)));
using HalfWords = uint16_t __attribute__((vector_size(4 * kLanes)));
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// One step of a transpose: swaps, between the rows i and i + kDistance, the halves of every run of
// 2 * kDistance words that lie off the diagonal.
template <int kDistance>
RINGSERVE_INLINE void SwapOffDiagonal(Words* rows) {
  for (int i = 0; i < kLanes; ++i) {
    if (i & kDistance) continue;
    const Words a = rows[i], b = rows[i + kDistance];
    if constexpr (kDistance == 1) {
      rows[i] =
          __builtin_shufflevector(a, b, 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30);
      rows[i + 1] =
          __builtin_shufflevector(a, b, 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31);
    } else if constexpr (kDistance == 2) {
      rows[i] =
          __builtin_shufflevector(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29);
      rows[i + 2] =
          __builtin_shufflevector(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
    } else if constexpr (kDistance == 4) {
      rows[i] =
          __builtin_shufflevector(a, b, 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27);
      rows[i + 4] =
          __builtin_shufflevector(a, b, 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31);
    } else {
      rows[i] =
          __builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23);
      rows[i + 8] = __builtin_shufflevector(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28,
                                            29, 30, 31);
    }
  }
}

RINGSERVE_INLINE void Transpose(Words* rows) {
  SwapOffDiagonal<1>(rows);
  SwapOffDiagonal<2>(rows);
  SwapOffDiagonal<4>(rows);
  SwapOffDiagonal<8>(rows);
}

// 16 words of a row, be they pairs of numbers or wide numbers.
RINGSERVE_INLINE void Load(Words& words, const BFloat16Bits* numbers, const BFloat16Bits*) {
  std::memcpy(&words, numbers, sizeof words);
}
template <typename Number>
RINGSERVE_INLINE void Load(Words& words, const Number* numbers, const float*) {
  float wide[kLanes];
#pragma omp simd
  for (int i = 0; i < kLanes; ++i) wide[i] = Widen(numbers[i]);
  std::memcpy(&words, wide, sizeof words);
}

template <typename Packed, typename Number>
RINGSERVE_INLINE void Keys(Packed* panel, const Number* keys, int64_t stride, int64_t rows,
                           int64_t dim) {
  constexpr int64_t kPerWord = sizeof(uint32_t) / sizeof(Packed);
  constexpr int64_t kNumbers = kLanes * kPerWord;
  uint32_t* const words = reinterpret_cast<uint32_t*>(panel);
  const int64_t words_deep = (dim + kPerWord - 1) / kPerWord;
  Words block[kLanes];
  for (int64_t d = 0; d < words_deep; d += kLanes) {
    const int64_t left = dim - d * kPerWord;
    for (int64_t first = 0; first < kPanelColumns; first += kLanes) {
      for (int64_t i = 0; i < kLanes; ++i) {
        const Number* key = keys + (first + i) * stride + d * kPerWord;
        if (first + i >= rows) {
          block[i] = Words{};
        } else if (left >= kNumbers) {
          Load(block[i], key, panel);
        } else {
          Number tail[kNumbers] = {};
          std::copy_n(key, left, tail);
          Load(block[i], tail, panel);
        }
      }
      Transpose(block);
      for (int64_t i = 0; i < std::min<int64_t>(kLanes, words_deep - d); ++i) {
        std::memcpy(words + (d + i) * kPanelColumns + first, &block[i], sizeof block[i]);
      }
    }
  }
}

RINGSERVE_INLINE void Values(BFloat16Bits* panel, const BFloat16Bits* values, int64_t stride,
                             int64_t rows, int64_t columns, int64_t width) {
  uint32_t* const words = reinterpret_cast<uint32_t*>(panel);
  std::fill_n(words, kPanelColumns / 2 * width, 0);
  for (int64_t row = 0; row + 1 < rows; row += 2) {
    const BFloat16Bits* const even = values + row * stride;
    const BFloat16Bits* const odd = even + stride;
    uint32_t* const into = words + row / 2 * width;
    for (int64_t i = 0; i < columns; ++i) {
      into[i] = static_cast<uint32_t>(even[i]) | static_cast<uint32_t>(odd[i]) << 16;
    }
  }
  if (rows % 2 == 0) return;
  const BFloat16Bits* const last = values + (rows - 1) * stride;
  for (int64_t i = 0; i < columns; ++i)
    words[rows / 2 * width + i] = static_cast<uint32_t>(last[i]);
}

template <typename Number>
RINGSERVE_INLINE void Values(float* panel, const Number* values, int64_t stride, int64_t rows,
                             int64_t columns, int64_t width) {
  for (int64_t row = 0; row < kPanelColumns; ++row) {
    float* const into = panel + row * width;
    const int64_t filled = row < rows ? columns : 0;
#pragma omp simd
    for (int64_t i = 0; i < filled; ++i) into[i] = Widen(values[row * stride + i]);
    std::fill(into + filled, into + width, 0.f);
  }
}

// Four rows at once, so that what they share is read once.
template <typename Number>
RINGSERVE_INLINE void Dots(float* results, const float* row, const Number* rows, int64_t stride,
                           int64_t n, int64_t dim) {
  int64_t i = 0;
  for (; i + 4 <= n; i += 4, rows += 4 * stride) {
    float a = 0, b = 0, c = 0, d = 0;
#pragma omp simd reduction(+ : a, b, c, d)
    for (int64_t j = 0; j < dim; ++j) {
      a += row[j] * Widen(rows[j]);
      b += row[j] * Widen(rows[j + stride]);
      c += row[j] * Widen(rows[j + 2 * stride]);
      d += row[j] * Widen(rows[j + 3 * stride]);
    }
    results[i] = a, results[i + 1] = b, results[i + 2] = c, results[i + 3] = d;
  }
  for (; i < n; ++i, rows += stride) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < dim; ++j) sum += row[j] * Widen(rows[j]);
    results[i] = sum;
  }
}

template <typename Number>
RINGSERVE_INLINE void WeightedRows(float* sums, const float* weights, const Number* rows,
                                   int64_t stride, int64_t n, int64_t columns) {
  int64_t i = 0;
  for (; i + 4 <= n; i += 4, rows += 4 * stride) {
    const float a = weights[i], b = weights[i + 1], c = weights[i + 2], d = weights[i + 3];
#pragma omp simd
    for (int64_t j = 0; j < columns; ++j) {
      sums[j] += (a * Widen(rows[j]) + b * Widen(rows[j + stride])) +
                 (c * Widen(rows[j + 2 * stride]) + d * Widen(rows[j + 3 * stride]));
    }
  }
  for (; i < n; ++i, rows += stride) {
#pragma omp simd
    for (int64_t j = 0; j < columns; ++j) sums[j] += weights[i] * Widen(rows[j]);
  }
}

// e^x = 2^n 2^f, |f| <= 1/2; the polynomial is 1 at 0 and there the best of degree 5 by relative
// error (9.2e-8). A product makes 2^n, because NaN must survive it. `kBias` makes n an exponent.
RINGSERVE_INLINE void Exp(Floats& x) {
  constexpr float kLog2E = 1.44269504f;
  constexpr float kBias = 0x1.8p23f + 127;  // plus a number, minus itself: the nearest integer
  const Floats shifted = x * kLog2E + kBias;
  const Floats f = x * kLog2E - (shifted - kBias);
  Floats p = f * 1.3264727e-3f + 9.6715130e-3f;
  p = p * f + 5.5507336e-2f;
  p = p * f + 2.4022242e-1f;
  p = p * f + 6.9314700e-1f;
  p = p * f + 1;
  const Floats power = (Floats)((Words)shifted << 23);
  const Words vanishes = (Words)(x < -87);
  x = (Floats)((Words)(p * power) & ~vanishes);
}

RINGSERVE_INLINE void Store(float* weights, const Floats& first, const Floats& second) {
  std::memcpy(weights, &first, sizeof first);
  std::memcpy(weights + kLanes, &second, sizeof second);
}
// To the nearest, ties away from 0; NaN stays NaN, as those of arithmetic are quiet.
RINGSERVE_INLINE void Store(BFloat16Bits* weights, const Floats& first, const Floats& second) {
  const auto a = (HalfWords)((Words)first + 0x8000), b = (HalfWords)((Words)second + 0x8000);
  const HalfWords narrow =
      __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31, 33,
                              35, 37, 39, 41, 43, 45, 47, 49, 51, 53, 55, 57, 59, 61, 63);
  std::memcpy(weights, &narrow, sizeof narrow);
}

// Two vectors of scores become weights.
template <typename Number>
RINGSERVE_INLINE void WeighTwo(Number* weights, const float* scores, float scale, float most,
                               Floats& sums) {
  Floats first, second;
  std::memcpy(&first, scores, sizeof first);
  std::memcpy(&second, scores + kLanes, sizeof second);
  first = first * scale - most;
  second = second * scale - most;
  Exp(first);
  Exp(second);
  sums += first + second;
  Store(weights, first, second);
}

// `most` is the largest product, rounded. That the others are not, where compilers fuse them with
// the subtraction, is as good, unless what rounding took from `most` counts by itself: where scores
// reach 2^32 it would make the largest weight 0 or infinite.
constexpr float kRoundingCounts = 0x1p16f;

// Sixteen sums side by side on every processor: their rounding grows with what each adds up.
template <typename Number>
RINGSERVE_INLINE float WeighRow(Number* weights, float* row, int64_t n, float scale, float most) {
  constexpr int64_t kAtOnce = 2 * kLanes;
  if (std::abs(most) > kRoundingCounts) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) row[i] *= scale;
    scale = 1;
  }
  Floats sums = {};
  int64_t i = 0;
  for (; i + kAtOnce <= n; i += kAtOnce) WeighTwo(weights + i, row + i, scale, most, sums);
  if (i < n) {
    float scores[kAtOnce];
    Number rest[kAtOnce];
    std::fill(std::copy(row + i, row + n, scores), scores + kAtOnce, -kInfinity);
    WeighTwo(rest, scores, scale, most, sums);
    std::copy_n(rest, n - i, weights + i);
  }
  float sum = 0;
  for (int lane = 0; lane < kLanes; ++lane) sum += sums[lane];
  return sum;
}

template <typename Wide>
RINGSERVE_INLINE void Distances(Wide* row, int64_t n, Wide scale, float slope, int64_t distance) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    row[i] = row[i] * scale - slope * std::abs(static_cast<Wide>(distance - i));
  }
}

template <typename Wide>
RINGSERVE_INLINE void HideRow(Wide* row, const uint8_t* visible, int64_t n, Wide scale) {
  constexpr Wide kHidden = -std::numeric_limits<Wide>::infinity();
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) row[i] = visible[i] ? row[i] * scale : kHidden;
}

template <typename Wide, typename Number>
RINGSERVE_INLINE void Bias(Wide* row, const Number* bias, int64_t n, Wide scale) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) row[i] = row[i] * scale + Widen(bias[i]);
}

}  // namespace

RINGSERVE_CLONES void LayOutKeys(BFloat16Bits* panel, const BFloat16Bits* keys, int64_t stride,
                                 int64_t rows, int64_t dim) {
  Keys(panel, keys, stride, rows, dim);
}
RINGSERVE_CLONES void LayOutKeys(float* panel, const BFloat16Bits* keys, int64_t stride,
                                 int64_t rows, int64_t dim) {
  Keys(panel, keys, stride, rows, dim);
}
RINGSERVE_CLONES void LayOutKeys(float* panel, const HalfBits* keys, int64_t stride, int64_t rows,
                                 int64_t dim) {
  Keys(panel, keys, stride, rows, dim);
}
RINGSERVE_CLONES void LayOutKeys(float* panel, const float* keys, int64_t stride, int64_t rows,
                                 int64_t dim) {
  Keys(panel, keys, stride, rows, dim);
}

RINGSERVE_CLONES void LayOutValues(BFloat16Bits* panel, const BFloat16Bits* values, int64_t stride,
                                   int64_t rows, int64_t columns, int64_t width) {
  Values(panel, values, stride, rows, columns, width);
}
RINGSERVE_CLONES void LayOutValues(float* panel, const BFloat16Bits* values, int64_t stride,
                                   int64_t rows, int64_t columns, int64_t width) {
  Values(panel, values, stride, rows, columns, width);
}
RINGSERVE_CLONES void LayOutValues(float* panel, const HalfBits* values, int64_t stride,
                                   int64_t rows, int64_t columns, int64_t width) {
  Values(panel, values, stride, rows, columns, width);
}
RINGSERVE_CLONES void LayOutValues(float* panel, const float* values, int64_t stride, int64_t rows,
                                   int64_t columns, int64_t width) {
  Values(panel, values, stride, rows, columns, width);
}

RINGSERVE_CLONES void MultiplyRows(float* results, const float* row, const float* rows,
                                   int64_t stride, int64_t n, int64_t dim) {
  Dots(results, row, rows, stride, n, dim);
}
RINGSERVE_CLONES void MultiplyRows(float* results, const float* row, const BFloat16Bits* rows,
                                   int64_t stride, int64_t n, int64_t dim) {
  Dots(results, row, rows, stride, n, dim);
}
RINGSERVE_CLONES void MultiplyRows(float* results, const float* row, const HalfBits* rows,
                                   int64_t stride, int64_t n, int64_t dim) {
  Dots(results, row, rows, stride, n, dim);
}

RINGSERVE_CLONES void AddRows(float* sums, const float* weights, const float* rows, int64_t stride,
                              int64_t n, int64_t columns) {
  WeightedRows(sums, weights, rows, stride, n, columns);
}
RINGSERVE_CLONES void AddRows(float* sums, const float* weights, const BFloat16Bits* rows,
                              int64_t stride, int64_t n, int64_t columns) {
  WeightedRows(sums, weights, rows, stride, n, columns);
}
RINGSERVE_CLONES void AddRows(float* sums, const float* weights, const HalfBits* rows,
                              int64_t stride, int64_t n, int64_t columns) {
  WeightedRows(sums, weights, rows, stride, n, columns);
}

RINGSERVE_CLONES float Largest(const float* scores, int64_t n) {
  float largest = -std::numeric_limits<float>::infinity();
#pragma omp simd reduction(max : largest)
  for (int64_t i = 0; i < n; ++i) largest = scores[i] > largest ? scores[i] : largest;
  return largest;
}

RINGSERVE_CLONES float Weigh(float* row, int64_t n, float scale, float most) {
  return WeighRow(row, row, n, scale, most);
}
RINGSERVE_CLONES float Weigh(BFloat16Bits* weights, float* row, int64_t n, float scale,
                             float most) {
  return WeighRow(weights, row, n, scale, most);
}

RINGSERVE_CLONES void AddDistances(float* row, int64_t n, float scale, float slope,
                                   int64_t distance) {
  Distances(row, n, scale, slope, distance);
}
RINGSERVE_CLONES void AddDistances(double* row, int64_t n, double scale, float slope,
                                   int64_t distance) {
  Distances(row, n, scale, slope, distance);
}

RINGSERVE_CLONES void AddBias(float* row, const float* bias, int64_t n, float scale) {
  Bias(row, bias, n, scale);
}
RINGSERVE_CLONES void AddBias(float* row, const BFloat16Bits* bias, int64_t n, float scale) {
  Bias(row, bias, n, scale);
}
RINGSERVE_CLONES void AddBias(float* row, const HalfBits* bias, int64_t n, float scale) {
  Bias(row, bias, n, scale);
}
RINGSERVE_CLONES void AddBias(double* row, const double* bias, int64_t n, double scale) {
  Bias(row, bias, n, scale);
}

RINGSERVE_CLONES void Hide(float* row, const uint8_t* visible, int64_t n, float scale) {
  HideRow(row, visible, n, scale);
}
RINGSERVE_CLONES void Hide(double* row, const uint8_t* visible, int64_t n, double scale) {
  HideRow(row, visible, n, scale);
}

RINGSERVE_CLONES void ScaleRow(float* row, const float* from, int64_t n, float factor) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) row[i] = factor * from[i];
}

}  // namespace ringserve
